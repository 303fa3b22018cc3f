// Running Helm as a child that writes to our own output. One thread, blocking.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/reason.h"

namespace nodemesh::ctl {

// The program `helm` in $PATH, or `wanted` itself; "" where there is none.
std::string find_program(const std::string& wanted);
// Its exit code. `input` is its standard input.
Result<int> run_program(const std::string& path, const std::vector<std::string>& words,
                        std::string_view input);

}  // namespace nodemesh::ctl
