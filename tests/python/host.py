"""Greedy text after a prompt, by llama-cpp-python: host.py MODEL PROMPT TOKENS"""

import os
import sys

import llama_cpp
from llama_cpp import _ggml

# A llama.cpp that loads its backends looks for them beside the program, which is Python.
libraries = os.path.join(os.path.dirname(llama_cpp.__file__), "lib")
_ggml.libggml.ggml_backend_load_all_from_path(os.fsencode(libraries))

model, prompt, tokens = sys.argv[1:]
llama = llama_cpp.Llama(model, n_ctx=256, n_threads=2, use_mmap=False)
sys.stdout.write(llama(prompt, max_tokens=int(tokens), temperature=0)["choices"][0]["text"])
