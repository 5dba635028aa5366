# What `make install` does: cmake -DPREFIX=<folder> -DLIBDIR=<folder in it> -P cmake/install.cmake. DESTDIR is respected.
#
# Puts the built library, its header, hypura.pc, the CMake package and the hypura command in place. Nothing that is
# installed names the prefix, so the tree can be moved.

cmake_minimum_required(VERSION 3.25)
include(CMakePackageConfigHelpers)

get_filename_component(repo "${CMAKE_CURRENT_LIST_DIR}" DIRECTORY)
get_filename_component(PREFIX "${PREFIX}" ABSOLUTE)
set(built "${repo}/target/release")
set(made "${repo}/build/install")

# Both versions exist in one place each.
file(STRINGS "${repo}/Cargo.toml" VERSION REGEX "^version = " LIMIT_COUNT 1)
string(REGEX MATCH "[0-9]+[.][0-9]+[.][0-9]+" VERSION "${VERSION}")
file(STRINGS "${repo}/include/hypura.h" abi REGEX "^#define HYPURA_ABI_VERSION ")
string(REGEX MATCH "[0-9]+$" abi "${abi}")

if (CMAKE_HOST_APPLE)
    set(name libhypura.dylib)
    set(SONAME libhypura.${abi}.dylib)
    set(LIBRARY libhypura.${VERSION}.dylib)
else()
    set(name libhypura.so)
    set(SONAME libhypura.so.${abi})
    set(LIBRARY libhypura.so.${VERSION})
endif()
# Such as ../.. from lib/pkgconfig to the prefix.
string(REGEX REPLACE "[^/]+" ".." up "${LIBDIR}")
set(UP_FROM_PKGCONFIG "../${up}")
set(UP_FROM_PACKAGE "../../${up}")

file(REMOVE_RECURSE "${made}")
file(MAKE_DIRECTORY "${made}")
file(COPY_FILE "${built}/${name}" "${made}/${LIBRARY}")
file(CREATE_LINK ${LIBRARY} "${made}/${SONAME}" SYMBOLIC)
file(CREATE_LINK ${SONAME} "${made}/${name}" SYMBOLIC)
configure_file("${repo}/cmake/hypura.pc.in" "${made}/hypura.pc" @ONLY)
configure_file("${repo}/cmake/hypura-config.cmake.in" "${made}/hypura-config.cmake" @ONLY)
# While the major version is 0, a minor one may break what was built for another.
write_basic_package_version_file("${made}/hypura-config-version.cmake" VERSION ${VERSION} COMPATIBILITY SameMinorVersion)

function(install_files folder kind)
    set(permissions OWNER_READ OWNER_WRITE GROUP_READ WORLD_READ)
    if (kind STREQUAL PROGRAMS)
        list(APPEND permissions OWNER_EXECUTE GROUP_EXECUTE WORLD_EXECUTE)
    endif()
    file(INSTALL ${ARGN} DESTINATION "${PREFIX}/${folder}" FILE_PERMISSIONS ${permissions})
endfunction()

install_files(bin PROGRAMS "${built}/hypura")
install_files(include FILES "${repo}/include/hypura.h")
install_files("${LIBDIR}" PROGRAMS "${made}/${LIBRARY}" "${made}/${SONAME}" "${made}/${name}")
install_files("${LIBDIR}/pkgconfig" FILES "${made}/hypura.pc")
install_files("${LIBDIR}/cmake/hypura" FILES "${made}/hypura-config.cmake" "${made}/hypura-config-version.cmake")
