// Greedy text after a prompt, by node-llama-cpp: node host.mjs PACKAGES MODEL PROMPT TOKENS
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [packages, modelPath, prompt, tokens] = process.argv.slice(2);
const module = createRequire(`${packages}/package.json`).resolve("node-llama-cpp");
const { getLlama, LlamaCompletion } = await import(pathToFileURL(module));

// its prebuilt addon and nothing that it would compile or download
const logger = (level, message) => process.stderr.write(`${message}\n`);
const llama = await getLlama({ build: "never", gpu: false, logLevel: "info", logger });
const model = await llama.loadModel({ modelPath, useMmap: false });
const context = await model.createContext({ contextSize: 256, threads: 2 });
const completion = new LlamaCompletion({ contextSequence: context.getSequence() });
const text = await completion.generateCompletion(prompt, { maxTokens: Number(tokens), temperature: 0 });
process.stdout.write(JSON.stringify({ text }));
await llama.dispose();
