// Generate text with one run of an artifact's onnx/model_spec.onnx:
//   npm install onnxruntime-node@1.30 @huggingface/tokenizers@0.2
//   node examples/generate.mjs build/smollm2 "Once upon a time" [new tokens] [draft tokens]
import { readFileSync } from "node:fs";
import { Tokenizer } from "@huggingface/tokenizers";
import { InferenceSession, Tensor } from "onnxruntime-node";

const [folder, prompt, newTokens = "64", draftTokens = "8"] = process.argv.slice(2);
const read = (name) => JSON.parse(readFileSync(`${folder}/${name}`, "utf8"));
const int64 = (values, dims) => new Tensor("int64", BigInt64Array.from(values, BigInt), dims);

const tokenizer = new Tokenizer(read("tokenizer.json"), read("tokenizer_config.json"));
const session = await InferenceSession.create(`${folder}/onnx/model_spec.onnx`);
const { ids } = tokenizer.encode(prompt);
const ends = [read("generation_config.json").eos_token_id ?? []].flat();
const { sequences, num_steps, num_drafted_tokens, num_accepted_tokens } = await session.run({
  input_ids: int64(ids, [1, ids.length]),
  max_new_tokens: int64([newTokens], []),
  eos_token_id: int64(ends, [ends.length]),
  max_draft_tokens: int64([draftTokens], []),
});
const answer = Array.from(sequences.data.slice(ids.length), Number);
console.log(tokenizer.decode(answer, { skip_special_tokens: true }));
const counts = [num_steps, num_accepted_tokens, num_drafted_tokens].map((tensor) => tensor.data[0]);
console.error(`${counts[0]} runs of the decoder, ${counts[1]} of ${counts[2]} drafted tokens accepted`);
