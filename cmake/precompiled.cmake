# Headers that many sources read and no edit of ours changes, for nodemesh_precompiled(). Not CMake's own way: that names the
# file by its whole path, and a compiler cache would then not serve another clone.
set(precompiled algorithm array atomic charconv chrono deque expected filesystem fstream functional map memory optional
    random set span sstream string string_view thread tuple unordered_map utility variant vector fmt/format.h
    nlohmann/json.hpp)
list(TRANSFORM precompiled REPLACE "(.+)" "#include <\\1>")
list(JOIN precompiled "\n" text)
file(CONFIGURE OUTPUT ${CMAKE_BINARY_DIR}/precompiled.h CONTENT "${text}\n")
string(TOUPPER ${CMAKE_BUILD_TYPE} type)
get_directory_property(options COMPILE_OPTIONS)
separate_arguments(flags UNIX_COMMAND "${CMAKE_CXX_FLAGS} ${CMAKE_CXX_FLAGS_${type}}")
list(PREPEND flags -DFMT_SHARED -std=c++2b ${options})
add_custom_command(
  OUTPUT precompiled.pch
  COMMAND ${CMAKE_CXX_COMPILER} ${flags} -fpch-instantiate-templates -Xclang -fno-pch-timestamp -MD -MF precompiled.d
          -MT precompiled.pch -x c++-header precompiled.h -o precompiled.pch
  DEPENDS ${CMAKE_BINARY_DIR}/precompiled.h
  DEPFILE precompiled.d)
add_custom_target(nm_precompiled DEPENDS precompiled.pch)

# The file names the folder it was made in; ccache goes by this, which is the same in every clone.
execute_process(COMMAND ${CMAKE_CXX_COMPILER} -std=c++2b -E -P ${CMAKE_BINARY_DIR}/precompiled.h
                OUTPUT_VARIABLE contents COMMAND_ERROR_IS_FATAL ANY)
string(SHA256 sum "${contents} ${flags} ${CMAKE_CXX_COMPILER_VERSION}")
file(CONFIGURE OUTPUT ${CMAKE_BINARY_DIR}/precompiled.pch.sum CONTENT ${sum})
