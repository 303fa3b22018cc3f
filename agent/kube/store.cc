#include "kube/store.h"

#include <algorithm>
#include <utility>

namespace nodemesh::kube {
namespace {

void check_scope(const Object& object, const Kind& kind, Problems& problems) {
  const Node* metadata = object.root.find("metadata");
  Problem problem{.line = object.line, .field = "metadata.namespace"};
  if (metadata) problem.line = metadata->line, problem.column = metadata->column;
  if (kind.namespaced && object.key.ns.empty()) {
    problem.message = "is required but missing";
    problem.fix = "write the namespace that the " + object.key.kind + " belongs to";
    problems.push_back(problem);
  } else if (!kind.namespaced && !object.key.ns.empty()) {
    problem.message = "a " + object.key.kind + " has no namespace";
    problem.fix = "remove metadata.namespace";
    problems.push_back(problem);
  }
}

void check_version(const Object& object, const Kind& kind, Problems& problems) {
  if (std::ranges::find(kind.versions, object.version) != kind.versions.end()) return;
  std::string allowed;
  for (auto version : kind.versions) allowed += (allowed.empty() ? "" : ", ") + std::string(version);
  const Node* node = object.root.find("apiVersion");
  report(problems, Severity::error, node ? *node : object.root,
         "unknown version \"" + object.version + "\" of " + object.key.kind, "use one of " + allowed);
}

}  // namespace

const Kind* Store::find_kind(const ObjectKey& key) const {
  auto found = std::ranges::find_if(
      kinds_, [&](const Kind& kind) { return kind.name == key.kind && kind.group == key.group; });
  return found == kinds_.end() ? nullptr : &*found;
}

Store::Version Store::read(std::shared_ptr<const Object> object, const Version* before) {
  Version version{.newest = object, .problems = object->problems};
  const Kind* kind = find_kind(object->key);
  if (!kind) {
    version.known_kind = false;
    std::string group = object->key.group.empty() ? "" : " of " + object->key.group;
    version.problems.push_back(
        {.severity = Severity::warning,
         .file = object->file,
         .line = object->line,
         .field = "kind",
         .message = "the kind " + object->key.kind + group + " is not read, the object is ignored",
         .fix = "remove it, or check kind and apiVersion for a typing error"});
    return version;
  }
  check_scope(*object, *kind, version.problems);
  check_version(*object, *kind, version.problems);
  std::shared_ptr<const Decoded> decoded;
  if (kind->read) {
    Fields fields(&object->root, version.problems, &shared_);
    fields.ignore({"apiVersion", "kind", "metadata"});
    decoded = kind->read(*object, fields, version.problems);
  }
  for (auto& problem : version.problems) problem.file = object->file;
  if (!has_error(version.problems)) {
    version.good = {std::move(object), std::move(decoded)};
  } else if (before) {
    version.good = before->good;
  }
  return version;
}

// After a document of the file could not be read, the objects that are not in the file any more may just be
// those.
void Store::keep_last_good(File& file, const File& before) const {
  for (const auto& old : before.versions) {
    bool present = std::ranges::any_of(file.versions,
                                       [&](const Version& v) { return v.newest->key == old.newest->key; });
    if (present || !old.good.object) continue;
    Version kept = old;
    kept.problems.push_back(
        {.severity = Severity::error,
         .file = old.newest->file,
         .line = old.newest->line,
         .message = "not found in the file while part of it cannot be read; the last good version stays",
         .fix = "correct line " + std::to_string(file.problems.front().line) + ": " +
                file.problems.front().message});
    if (has_error(old.problems)) kept.problems = old.problems;
    file.versions.push_back(std::move(kept));
  }
}

bool Store::set_file(const std::string& file, Manifest manifest) {
  File& current = files_[file];
  File next;
  next.problems = std::move(manifest.problems);
  std::map<ObjectKey, const Version*> before;
  for (const auto& version : current.versions) before.emplace(version.newest->key, &version);
  bool changed = next.problems != current.problems || manifest.objects.size() != current.versions.size();
  for (size_t i = 0; i < manifest.objects.size(); ++i) {
    auto& object = manifest.objects[i];
    auto found = before.find(object->key);
    const Version* old = found == before.end() ? nullptr : found->second;
    if (old && old->newest->root == object->root) {
      next.versions.push_back(*old);
    } else {
      next.versions.push_back(read(std::move(object), old));
      changed = true;
    }
  }
  if (!next.problems.empty()) keep_last_good(next, current);
  current = std::move(next);
  if (changed) publish();
  return changed;
}

bool Store::fail_file(const std::string& file, Problem problem) {
  problem.file = file;
  Problems problems{std::move(problem)};
  if (files_[file].problems == problems) return false;
  files_[file].problems = std::move(problems);
  publish();
  return true;
}

bool Store::remove_file(const std::string& file) {
  if (files_.erase(file) == 0) return false;
  publish();
  return true;
}

bool Store::upsert(std::shared_ptr<Object> object) {
  const auto& key = object->key;
  auto found = singles_.find(key);
  auto version = read(object, found == singles_.end() ? nullptr : &found->second);
  // Half of the memory of an object, and of no use any more: an API server's objects have no lines. (`= {}`
  // would keep the array.)
  object->root.children = std::vector<Node>();
  if (found != singles_.end()) singles_.erase(found);
  publish(key, singles_.emplace(&key, std::move(version)).first->second.good);
  return true;
}

bool Store::remove(const ObjectKey& key) {
  auto found = singles_.find(key);
  if (found == singles_.end()) return false;
  auto gone = singles_.extract(found);
  publish(key, {});
  return true;
}

// Who is in force. Of files the first by name wins, which does not depend on the order of edits.
Store::Claims Store::claims() const {
  Claims claims;
  for (const auto& [key, version] : singles_) {
    if (version.good.object) claims.try_emplace(*key, &version);
  }
  for (const auto& [name, file] : files_) {
    for (const auto& version : file.versions) {
      if (version.good.object) claims.try_emplace(version.newest->key, &version);
    }
  }
  return claims;
}

void Store::publish() {
  ++generation_;
  in_force_.clear();
  auto all = claims();
  for (const auto& [key, version] : all) in_force_[key.kind].entries.insert(version->good);
  size_ = all.size();
}

void Store::publish(const ObjectKey& key, const Entry& entry) {
  if (!files_.empty()) return publish();  // another's claim may take its place
  ++generation_;
  auto& kind = in_force_[key.kind];
  size_ -= kind.entries.size();
  if (auto before = kind.entries.find(key); before != kind.entries.end()) kind.entries.erase(before);
  if (entry.object) kind.entries.insert(entry);
  size_ += kind.entries.size();
  kind.sorted_stale = true;
}

std::vector<Status> Store::statuses() const {
  std::vector<Status> out;
  out.reserve(singles_.size());
  auto all = files_.empty() ? Claims{} : claims();  // without files there is nothing twice
  for (const auto& [key, version] : singles_) out.push_back(status_of(version, all));
  for (const auto& [name, file] : files_) {
    for (const auto& problem : file.problems) {
      out.push_back(
          {.file = name, .line = problem.line, .state = Status::State::refused, .problems = {problem}});
    }
    for (const auto& version : file.versions) out.push_back(status_of(version, all));
  }
  return out;
}

Status Store::status_of(const Version& version, const Claims& claims) const {
  using enum Status::State;
  const auto& object = *version.newest;
  Status status{.kind = object.key.kind,
                .ns = object.key.ns,
                .name = object.key.name,
                .file = object.file,
                .line = object.line,
                .problems = version.problems};
  auto claim = claims.find(object.key);
  if (!version.known_kind) {
    status.state = ignored;
  } else if (has_error(version.problems)) {
    status.state = version.good.object ? stale : refused;
  } else if (claim != claims.end() && claim->second != &version) {
    const auto& other = *claim->second->newest;
    status.state = ignored;
    status.problems.push_back({.file = object.file,
                               .line = object.line,
                               .message = "the same object is in " + other.file + " line " +
                                          std::to_string(other.line) + ", which stays in force",
                               .fix = "remove one of the two"});
  } else if (!version.problems.empty()) {
    status.state = warned;
  }
  return status;
}

std::span<const Entry> Store::objects(std::string_view kind) const {
  auto found = in_force_.find(kind);
  if (found == in_force_.end()) return {};
  const InForce& table = found->second;
  if (std::exchange(table.sorted_stale, false)) {
    table.sorted.assign(table.entries.begin(), table.entries.end());
  }
  return table.sorted;
}

std::vector<Store::Newest> Store::newest(std::string_view kind) const {
  std::vector<Newest> out;
  auto add = [&](const Version& version) {
    bool good = version.newest == version.good.object;
    out.push_back({*version.newest, good ? version.good.decoded.get() : nullptr});
  };
  for (const auto& one : kinds_) {
    if (one.name != kind) continue;
    ObjectKey first{.group = std::string(one.group), .kind = std::string(one.name)};
    for (auto at = singles_.lower_bound(first); at != singles_.end(); ++at) {
      if (at->first->group != first.group || at->first->kind != first.kind) break;
      add(at->second);
    }
  }
  for (const auto& [name, file] : files_) {
    for (const auto& version : file.versions) {
      if (version.newest->key.kind == kind) add(version);
    }
  }
  return out;
}

const Entry* Store::find(std::string_view kind, std::string_view ns, std::string_view name) const {
  auto table = in_force_.find(kind);
  if (table == in_force_.end()) return nullptr;
  auto found = table->second.entries.lower_bound(Place{ns, name, {}});
  if (found == table->second.entries.end()) return nullptr;
  const auto& key = found->object->key;
  return key.ns == ns && key.name == name ? &*found : nullptr;
}

}  // namespace nodemesh::kube
