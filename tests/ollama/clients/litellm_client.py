import json
import sys

import litellm
from common import MODEL, QUESTION, SCHEMA, TOKENS, TOOL, imitated

url = sys.argv[1]
litellm.suppress_debug_info = True


def complete(**more):
    """By Ollama's own API."""
    messages = [{"role": "user", "content": QUESTION}]
    request = {"model": f"ollama_chat/{MODEL}", "api_base": url, "messages": messages, "temperature": 0, "seed": 1, "max_tokens": TOKENS}
    return litellm.completion(**(request | more))


call = complete(messages=imitated(), tools=[TOOL], max_tokens=60).choices[0].message.tool_calls[0].function
form = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}}
embedded = litellm.embedding(model=f"ollama/{MODEL}", api_base=url, input=["a", "b"])
openai = {"model": f"openai/{MODEL}", "api_base": f"{url}/v1", "api_key": "-"}
logprobs = complete(**openai, logprobs=True, top_logprobs=2).choices[0].logprobs
print(
    json.dumps(
        {
            "chat": complete().choices[0].message.content,
            "stream": "".join(part.choices[0].delta.content or "" for part in complete(stream=True)),
            "tools": [call.name, json.loads(call.arguments)],
            "schema": complete(response_format=form, max_tokens=60).choices[0].message.content,
            "embeddings": [len(item["embedding"]) for item in embedded.data],
            "logprobs": [len(token.top_logprobs) for token in logprobs.content],
        }
    )
)
