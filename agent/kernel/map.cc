#include "kernel/map.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <numeric>

namespace nodemesh::kernel {

Result<Map> Map::open(const std::string& directory, std::string name) {
  const std::string path = directory + "/" + name;
  Fd fd(::bpf_obj_get(path.c_str()));
  if (!fd) return fail_errno(fmt::format("BPF map {}: open the pin", path));
  return Map(std::move(fd), std::move(name));
}

Result<> Map::set_bytes(const void* key, const void* value) {
  if (::bpf_map_update_elem(fd_.get(), key, value, BPF_ANY) == 0) return {};
  if (errno == E2BIG || errno == ENOSPC)
    return fail(Reason::MAP_FULL,
                fmt::format("BPF map {}: full; this node has more objects than the map has places", name_));
  return fail_errno(fmt::format("BPF map {}: update", name_));
}

Result<> Map::erase_bytes(const void* key) {
  if (::bpf_map_delete_elem(fd_.get(), key) == 0) return {};
  if (errno == ENOENT || errno == EINVAL) return {};  // sockhash on 5.15 says EINVAL for an absent key
  return fail_errno(fmt::format("BPF map {}: delete", name_));
}

bool Map::get_bytes(const void* key, void* out) const {
  return ::bpf_map_lookup_elem(fd_.get(), key, out) == 0;
}

bool Map::next_bytes(const void* key, void* next) const {
  return ::bpf_map_get_next_key(fd_.get(), key, next) == 0;
}

std::vector<uint64_t> Map::sums(uint32_t count) const {
  const int cpus = ::libbpf_num_possible_cpus();
  std::vector<uint64_t> totals(count), each(cpus > 0 ? cpus : 1);
  for (uint32_t key = 0; key < count; key++)
    if (get_bytes(&key, each.data())) totals[key] = std::accumulate(each.begin(), each.end(), uint64_t{0});
  return totals;
}

}  // namespace nodemesh::kernel
