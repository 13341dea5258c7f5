import { describeInvariance, itKeepsBitsInACrowd } from "./describeInvariance.ts";

describeInvariance({ activations: "int8", cacheType: "f16" });
itKeepsBitsInACrowd({ activations: "int8", cacheType: "f32" });
