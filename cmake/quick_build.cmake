# Included by llama.cpp's project() in the builds of scripts/versions.py, where compiling is what takes long.

function(hypura_build_llama_quickly)
    # Its work is to describe graphs; the arithmetic is ggml's. Without optimisation it takes a third of the time.
    target_compile_options(llama PRIVATE -O0)
    # More than a hundred models include this and little else. Parsed once, each takes a quarter of the time.
    if (EXISTS "${CMAKE_SOURCE_DIR}/src/models/models.h")
        target_precompile_headers(llama PRIVATE src/models/models.h)
    endif()
endfunction()
cmake_language(DEFER DIRECTORY "${CMAKE_SOURCE_DIR}" CALL hypura_build_llama_quickly)
