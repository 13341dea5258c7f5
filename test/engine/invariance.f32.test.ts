import { describeInvariance, itKeepsBitsInACrowd } from "./describeInvariance.ts";

describeInvariance({ activations: "f32", cacheType: "f32" });
itKeepsBitsInACrowd({ activations: "f32", cacheType: "f16" });
