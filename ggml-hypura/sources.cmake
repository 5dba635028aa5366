# What the backend is made of, in llama.cpp's build and in its own.
set(HYPURA_ADAPTER_SOURCES
    ggml-hypura.cpp
    buffer.cpp
    compute.cpp
    copy.cpp
    discover.cpp
    early.cpp
    expect.cpp
    experts.cpp
    host.cpp
    lookahead.cpp
    model.cpp
    rows.cpp
    speed.cpp
)
