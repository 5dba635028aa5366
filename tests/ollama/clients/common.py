"""What every client is asked for, in the forms that most of them share."""

MODEL = "smollm2"
QUESTION = "What is the capital of France?"
TOKENS = 8
SCHEMA = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}}, "required": ["city"], "additionalProperties": False}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "get_weather", "description": "Get the weather of a city", "parameters": PARAMETERS}}
CITIES = ["Oslo", "Rome"]
ASKED = "What is the weather in {}?"


def imitated() -> list[dict]:
    """A conversation with calls of the tool, which a small model goes on with, in OpenAI's words."""
    messages = []
    for number, city in enumerate(CITIES):
        function = {"name": "get_weather", "arguments": f'{{"city": "{city}"}}'}
        call = {"id": f"call_{number}", "type": "function", "function": function}
        messages.append({"role": "user", "content": ASKED.format(city)})
        messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
    return [*messages, {"role": "user", "content": ASKED.format("Paris")}]
