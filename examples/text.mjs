// Text to text with one run of an artifact's onnx/model_text.onnx (compile ... --text-io):
//   npm install onnxruntime-node@1.30
//   node examples/text.mjs build/smollm2 "Once upon a time" [new tokens] [draft tokens]
import { readFileSync } from "node:fs";
import { InferenceSession, Tensor } from "onnxruntime-node";

const [folder, prompt, newTokens = "64", draftTokens = "8"] = process.argv.slice(2);
const int64 = (values, dims) => new Tensor("int64", BigInt64Array.from(values, BigInt), dims);

const session = await InferenceSession.create(`${folder}/onnx/model_text.onnx`);
const config = JSON.parse(readFileSync(`${folder}/generation_config.json`, "utf8"));
const ends = [config.eos_token_id ?? []].flat();
const { text, num_steps, num_drafted_tokens, num_accepted_tokens } = await session.run({
  prompt: new Tensor("string", [prompt], [1]),
  max_new_tokens: int64([newTokens], []),
  eos_token_id: int64(ends, [ends.length]),
  max_draft_tokens: int64([draftTokens], []),
});
console.log(text.data[0]);
const counts = [num_steps, num_accepted_tokens, num_drafted_tokens].map((tensor) => tensor.data[0]);
console.error(`${counts[0]} runs of the decoder, ${counts[1]} of ${counts[2]} drafted tokens accepted`);
