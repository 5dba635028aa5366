# Included by llama.cpp's project() in the builds of scripts/versions.py: libllama is compiled without optimisation, which takes a
# third of the time. Its work is to describe graphs; the arithmetic is ggml's.
cmake_language(DEFER DIRECTORY "${CMAKE_SOURCE_DIR}" CALL target_compile_options llama PRIVATE -O0)
