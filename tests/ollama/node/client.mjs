// Drives a server through Ollama's own JavaScript client; prints what it got as JSON. Argument: the URL.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [url, packages] = process.argv.slice(2);
const { Ollama } = await import(pathToFileURL(createRequire(`${packages}/`).resolve("ollama")));
const client = new Ollama({ host: url });
const model = "smollm2";
const options = { temperature: 0, seed: 1, num_predict: 8 };
const messages = [{ role: "user", content: "What is the capital of France?" }];
const got = {};

got.models = (await client.list()).models.map((entry) => entry.name);
got.family = (await client.show({ model })).details.family;
got.chat = (await client.chat({ model, messages, options })).message.content;
got.streamed = "";
for await (const part of await client.chat({ model, messages, options, stream: true })) got.streamed += part.message.content;
got.generated = (await client.generate({ model, prompt: "The capital of France is", options })).eval_count;
const format = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const structured = await client.chat({ model, messages, format, options: { ...options, num_predict: 60 } });
got.structured = JSON.parse(structured.message.content);
got.embedded = (await client.embed({ model, input: ["a", "b"] })).embeddings.map((vector) => vector.length);
got.running = (await client.ps()).models.map((entry) => entry.name);

// A stream that is aborted ends with an error here, and with a free slot there.
const endless = await client.generate({ model, prompt: "Tell a story.", options: { num_predict: 20000 }, stream: true });
try {
  for await (const part of endless) if (part.response) client.abort();
} catch (error) {
  got.aborted = error.name;
}
try {
  await client.push({ model });
} catch (error) {
  got.refused = error.message;
}
console.log(JSON.stringify(got));
