#include "http/header_block.h"

namespace nodemesh::http {

std::string_view HeaderBlock::find(std::string_view name) const {
  for (size_t i = 0; i < used; ++i) {
    if (fields[i].first == name) return fields[i].second;
  }
  return {};
}

std::pair<std::string, std::string>& HeaderBlock::add(std::string_view name, std::string_view value) {
  if (used == fields.size()) fields.emplace_back();
  auto& field = fields[used++];
  field.first.assign(name);
  field.second.assign(value);
  return field;
}

void HeaderBlock::clear() {
  for (std::string* part : {&method, &scheme, &authority, &path, &protocol}) part->clear();
  status = 0;
  used = 0;
}

}  // namespace nodemesh::http
