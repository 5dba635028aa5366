"""Text arrives whole."""

import json

from hypura_server import GREEDY

EMOJI = "🎈🚀🐧🦀"


def test_characters_of_several_tokens_arrive_whole(server):
    """An emoji is up to four tokens here; a schema that allows one text only makes the model write it."""
    schema = {"const": f"é{EMOJI}漢字"}
    request = {"model": "smollm2", "prompt": "?", "raw": True, "format": schema, "options": GREEDY | {"num_predict": 60}}
    response = server.post("/api/generate", request, stream=True)
    texts = [json.loads(line)["response"] for line in response.iter_lines()]
    assert json.loads("".join(texts)) == f"é{EMOJI}漢字"
    assert "\ufffd" not in "".join(texts)
    assert len(texts) > 5, "it came in parts"


def test_characters_reach_the_model_whole(server):
    """Whole emoji are in the prompt: its tokens, returned as the context, spell them."""
    answer = server.ask("/api/generate", {"model": "smollm2", "prompt": EMOJI, "stream": False, "options": GREEDY})
    plain = server.ask("/api/generate", {"model": "smollm2", "prompt": "a", "stream": False, "options": GREEDY})
    assert answer["prompt_eval_count"] > plain["prompt_eval_count"] + len(EMOJI)
