import json
import sys

import openai
from common import MODEL, QUESTION, SCHEMA, TOKENS, TOOL, imitated

client = openai.OpenAI(base_url=f"{sys.argv[1]}/v1", api_key="-")
request = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0}


def create(**more):
    return client.chat.completions.create(**(request | {"max_tokens": TOKENS} | more))


def streamed() -> str:
    return "".join(part.choices[0].delta.content or "" for part in create(stream=True) if part.choices)


call = create(messages=imitated(), tools=[TOOL], max_tokens=60).choices[0].message.tool_calls[0].function
form = {"type": "json_schema", "json_schema": {"name": "place", "strict": True, "schema": SCHEMA}}
logprobs = create(logprobs=True, top_logprobs=2).choices[0].logprobs.content
got = {
    "list": [model.id for model in client.models.list()],
    "show": client.models.retrieve(MODEL).id,
    "chat": create().choices[0].message.content,
    "stream": streamed(),
    "tools": [call.name, json.loads(call.arguments)],
    "schema": create(response_format=form, max_tokens=60).choices[0].message.content,
    "embeddings": [len(item.embedding) for item in client.embeddings.create(model=MODEL, input=["a", "b"]).data],
    "logprobs": [len(token.top_logprobs) for token in logprobs],
    "responses": client.responses.create(model=MODEL, input=QUESTION, max_output_tokens=TOKENS, temperature=0).output_text,
}
print(json.dumps(got))
