import json
import sys

from common import ASKED, CITIES, MODEL, QUESTION, SCHEMA, TOKENS, TOOL
from langchain_core.messages import AIMessage, HumanMessage
from langchain_ollama import ChatOllama, OllamaEmbeddings

url = sys.argv[1]


def chat(tokens: int = TOKENS, **more) -> ChatOllama:
    return ChatOllama(model=MODEL, base_url=url, temperature=0, seed=1, num_predict=tokens, validate_model_on_init=True, **more)


messages = []
for number, city in enumerate(CITIES):
    call = {"id": f"call_{number}", "name": "get_weather", "args": {"city": city}}
    messages += [HumanMessage(ASKED.format(city)), AIMessage("", tool_calls=[call])]
(call,) = chat(60).bind_tools([TOOL]).invoke([*messages, HumanMessage(ASKED.format("Paris"))]).tool_calls
probable = chat(logprobs=True, top_logprobs=2).invoke(QUESTION).response_metadata["logprobs"]
print(
    json.dumps(
        {
            "chat": chat().invoke(QUESTION).content,
            "stream": "".join(part.content for part in chat().stream(QUESTION)),
            "tools": [call["name"], call["args"]],
            "schema": json.dumps(chat(60).with_structured_output(SCHEMA | {"title": "place"}, method="json_schema").invoke(QUESTION)),
            "embeddings": [len(vector) for vector in OllamaEmbeddings(model=MODEL, base_url=url).embed_documents(["a", "b"])],
            "logprobs": [len(token["top_logprobs"]) for token in probable],
        }
    )
)
