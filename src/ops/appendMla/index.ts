/** The append to the cache of multi-head latent attention: contract, page layouts, reference, and the function that records it. */
export { type AppendMlaArgs, type AppendMlaSpec, type MlaTokenLayout, mlaTokenPages } from "./contract.ts";
export { recordAppendMla } from "./record.ts";
export { appendMla } from "./reference.ts";
