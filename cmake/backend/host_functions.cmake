# Writes the header that lists the functions of ggml that objects use: cmake -DNM=<nm> -DOBJECTS=<a;b> -DHEADER=<file> -P this.
execute_process(COMMAND "${NM}" --undefined-only ${OBJECTS} OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCHALL " U (ggml|gguf)_[A-Za-z0-9_]+" names "${symbols}")
string(REPLACE " U " "" names "${names}")
list(REMOVE_DUPLICATES names)
# defined by the backend itself
list(FILTER names EXCLUDE REGEX "^ggml_backend_hypura")
list(SORT names)
list(TRANSFORM names REPLACE "(.+)" " \\\\\n    X(\\1)")
list(JOIN names "" names)
file(WRITE "${HEADER}.new" "#define HYPURA_HOST_FUNCTIONS(X)${names}\n")
file(COPY_FILE "${HEADER}.new" "${HEADER}" ONLY_IF_DIFFERENT)
