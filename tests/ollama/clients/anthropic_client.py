import json
import sys

import anthropic
from common import ASKED, CITIES, MODEL, PARAMETERS, QUESTION, TOKENS

client = anthropic.Anthropic(base_url=sys.argv[1], api_key="-", max_retries=0)
# The newest models take no temperature, so the client has lost the argument.
request = {"model": MODEL, "max_tokens": TOKENS, "extra_body": {"temperature": 0}}
messages = [{"role": "user", "content": QUESTION}]


def streamed() -> str:
    with client.messages.stream(**request, messages=messages) as stream:
        return "".join(stream.text_stream)


def refused() -> str:
    try:
        client.messages.create(**request, messages=[{"role": "user", "content": "word " * 9000}])
    except anthropic.APIStatusError as error:
        return f"{error.status_code} {error.body['type']}"
    return "nothing"


imitated = []
for number, city in enumerate(CITIES):
    made = {"type": "tool_use", "id": f"call_{number}", "name": "get_weather", "input": {"city": city}}
    imitated += [{"role": "user", "content": ASKED.format(city)}, {"role": "assistant", "content": [made]}]
imitated.append({"role": "user", "content": ASKED.format("Paris")})
tool = {"name": "get_weather", "description": "Get the weather of a city", "input_schema": PARAMETERS}
asked = client.messages.create(**request | {"max_tokens": 60}, messages=imitated, tools=[tool])
(call,) = (block for block in asked.content if block.type == "tool_use")
print(
    json.dumps(
        {
            "list": [model.id for model in client.models.list()],
            "show": client.models.retrieve(MODEL).id,
            "chat": client.messages.create(**request, messages=messages).content[0].text,
            "stream": streamed(),
            "tools": [call.name, call.input],
            "tokens": client.messages.count_tokens(model=MODEL, messages=messages).input_tokens,
            "error": refused(),
        }
    )
)
