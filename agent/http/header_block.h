// The head of an HTTP message, request or response, in the form that HTTP/1 and HTTP/2 share: pseudo-header
// fields apart, names in lower case. Reused from message to message, so that reading one allocates nothing
// once the strings have grown. Values; any one thread.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace nodemesh::http {

// A header block while it is being handled. The views of `fields` die with the call that hands it out.
struct HeaderBlock {
  std::string method, scheme, authority, path, protocol;  // pseudo-header fields; empty when absent
  int status = 0;
  std::vector<std::pair<std::string, std::string>> fields;
  size_t used = 0;  // of `fields`; the rest keeps its storage for the next block

  // The first field's value; empty when there is none.
  std::string_view find(std::string_view name) const;
  std::pair<std::string, std::string>& add(std::string_view name, std::string_view value);
  // Takes out all fields of which `drop(name)` says so; their storage stays.
  void remove_if(auto&& drop) {
    size_t kept = 0;
    for (size_t i = 0; i < used; ++i) {
      if (drop(std::string_view(fields[i].first))) continue;
      if (kept != i) std::swap(fields[kept], fields[i]);
      ++kept;
    }
    used = kept;
  }
  void clear();
};

struct HeaderField {
  std::string_view name, value;
  bool once = false;  // differs every time: keep it out of the compression table
};

}  // namespace nodemesh::http
