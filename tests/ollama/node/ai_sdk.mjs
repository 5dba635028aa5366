// Drives a server through the AI SDK with its provider for Ollama; prints what it got as JSON. Arguments: the URL, the packages.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [url, packages] = process.argv.slice(2);
const load = (name) => import(pathToFileURL(createRequire(`${packages}/`).resolve(name)));
const { embedMany, generateText, jsonSchema, Output, streamText, tool } = await load("ai");
const { createOllama } = await load("ai-sdk-ollama");
const ollama = createOllama({ baseURL: url });
const request = { model: ollama("smollm2"), temperature: 0, seed: 1, maxOutputTokens: 8, maxRetries: 0 };
const prompt = "What is the capital of France?";
const city = { type: "object", properties: { city: { type: "string" } }, required: ["city"], additionalProperties: false };
const got = {};

got.chat = (await generateText({ ...request, prompt })).text;
got.stream = "";
for await (const part of streamText({ ...request, prompt }).textStream) got.stream += part;

// Calls of the tool, which a small model goes on with: as the chat template writes them, since the SDK wants a result after each.
const asked = (place) => ({ role: "user", content: `What is the weather in ${place}?` });
const written = (place) => `<tool_call>\n{"name": "get_weather", "arguments": {"city": "${place}"}}\n</tool_call>`;
const messages = ["Oslo", "Rome"].flatMap((place) => [asked(place), { role: "assistant", content: written(place) }]);
messages.push(asked("Paris"));
const tools = { get_weather: tool({ description: "Get the weather of a city", inputSchema: jsonSchema(city) }) };
const [call] = (await generateText({ ...request, messages, tools, maxOutputTokens: 60 })).toolCalls;
got.tools = [call.toolName, call.input];

const output = Output.object({ schema: jsonSchema({ ...city, properties: { city: { type: "string", maxLength: 12 } } }) });
got.schema = JSON.stringify((await generateText({ ...request, prompt, output, maxOutputTokens: 60 })).output);
const { embeddings } = await embedMany({ model: ollama.embedding("smollm2"), values: ["a", "b"] });
got.embeddings = embeddings.map((vector) => vector.length);
console.log(JSON.stringify(got));
