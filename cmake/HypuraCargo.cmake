# hypura_cargo_library(TARGET): builds libhypura with cargo and makes it linkable as the imported library TARGET.
#
# The library is published next to the other shared libraries, where the build's rpath finds it. Cargo is asked in
# every build, since only it knows what libhypura is made of; the published file changes only with its content, so
# an unchanged library relinks nothing.

if (CMAKE_SCRIPT_MODE_FILE)
    # The build step after cargo: cmake -DLIBRARY=<built> -DDESTINATION=<folder> [-DREADELF=<program>] -P <this file>
    get_filename_component(name "${LIBRARY}" NAME)
    set(published "${DESTINATION}/${name}")
    execute_process(COMMAND ${CMAKE_COMMAND} -E compare_files "${LIBRARY}" "${published}"
        RESULT_VARIABLE differs OUTPUT_QUIET ERROR_QUIET)
    if (differs)
        # A rename, not a write in place: a running program may have the old file mapped.
        execute_process(COMMAND ${CMAKE_COMMAND} -E copy "${LIBRARY}" "${published}.new" RESULT_VARIABLE failed)
        if (failed)
            message(FATAL_ERROR "cannot copy ${LIBRARY} to ${published}")
        endif()
        file(RENAME "${published}.new" "${published}")
    endif()
    # The loader looks for the SONAME, which the linker copies into what it links.
    if (READELF)
        execute_process(COMMAND "${READELF}" -d "${LIBRARY}" OUTPUT_VARIABLE dynamic ERROR_QUIET)
        if (dynamic MATCHES "SONAME[^[]*\\[([^]]+)\\]" AND NOT CMAKE_MATCH_1 STREQUAL name)
            file(CREATE_LINK "${name}" "${DESTINATION}/${CMAKE_MATCH_1}" SYMBOLIC)
        endif()
    endif()
    return()
endif()

function(hypura_cargo_library target)
    get_filename_component(repo "${CMAKE_CURRENT_FUNCTION_LIST_DIR}/.." REALPATH)
    set(script "${CMAKE_CURRENT_FUNCTION_LIST_FILE}")

    find_program(HYPURA_CARGO cargo HINTS ENV CARGO_HOME "$ENV{HOME}/.cargo" PATH_SUFFIXES bin
        DOC "The cargo that builds libhypura")
    if (NOT HYPURA_CARGO)
        message(FATAL_ERROR
            "libhypura is written in Rust and cargo was not found. Install Rust (https://rustup.rs), or name cargo with "
            "-DHYPURA_CARGO=<path>, or build llama.cpp without it: -DLLAMA_HYPURA=OFF.")
    endif()

    # Where llama.cpp puts its shared libraries and backends.
    if (CMAKE_RUNTIME_OUTPUT_DIRECTORY)
        set(output_dir "${CMAKE_RUNTIME_OUTPUT_DIRECTORY}")
    else()
        set(output_dir "${CMAKE_CURRENT_BINARY_DIR}")
    endif()
    set(name "libhypura${CMAKE_SHARED_LIBRARY_SUFFIX}")
    set(HYPURA_CARGO_TARGET_DIR "${CMAKE_CURRENT_BINARY_DIR}/cargo" CACHE PATH
        "Where cargo keeps what it builds; builds that share it compile libhypura once")
    set(target_dir "${HYPURA_CARGO_TARGET_DIR}")

    # For another machine: cargo's word for what CMake compiles for, with the same linker.
    set(HYPURA_CARGO_TARGET "" CACHE STRING "The target triple of cargo when cross-compiling, such as aarch64-unknown-linux-gnu")
    set(cargo "${HYPURA_CARGO}")
    if (HYPURA_CARGO_TARGET)
        string(TOUPPER "${HYPURA_CARGO_TARGET}" linker)
        string(REPLACE "-" "_" linker "CARGO_TARGET_${linker}_LINKER")
        set(cargo "${CMAKE_COMMAND}" -E env "${linker}=${CMAKE_C_COMPILER}" "${HYPURA_CARGO}")
        set(cargo_target --target "${HYPURA_CARGO_TARGET}")
    elseif (CMAKE_CROSSCOMPILING)
        message(FATAL_ERROR "libhypura is compiled by cargo, which has to be told the other machine as well: "
            "-DHYPURA_CARGO_TARGET=<triple>, such as aarch64-unknown-linux-gnu, or build without it: -DLLAMA_HYPURA=OFF.")
    endif()
    set(built "${target_dir}/${HYPURA_CARGO_TARGET}/release/${name}")

    add_custom_target(${target}_cargo
        COMMAND ${cargo} build --quiet --release --locked --lib ${cargo_target}
                --manifest-path "${repo}/Cargo.toml" --target-dir "${target_dir}"
        COMMAND "${CMAKE_COMMAND}" -E make_directory "${output_dir}"
        COMMAND "${CMAKE_COMMAND}" "-DLIBRARY=${built}" "-DDESTINATION=${output_dir}"
                "-DREADELF=${CMAKE_READELF}" -P "${script}"
        BYPRODUCTS "${output_dir}/${name}"
        COMMENT "Building libhypura with cargo"
        VERBATIM)

    add_library(${target} SHARED IMPORTED GLOBAL)
    set_target_properties(${target} PROPERTIES
        IMPORTED_LOCATION "${output_dir}/${name}"
        INTERFACE_INCLUDE_DIRECTORIES "${repo}/include")
    add_dependencies(${target} ${target}_cargo)

    # With its SONAME link; beside the backend that loads it.
    if (GGML_BACKEND_DL)
        set(install_dir "${CMAKE_INSTALL_BINDIR}")
    else()
        set(install_dir "${CMAKE_INSTALL_LIBDIR}")
    endif()
    if (install_dir)
        install(DIRECTORY "${output_dir}/" DESTINATION "${install_dir}" USE_SOURCE_PERMISSIONS
            FILES_MATCHING PATTERN "libhypura*")
    endif()
endfunction()
