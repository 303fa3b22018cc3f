#include "kube/snapshot_journal.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include <fmt/format.h>

#include "base/log.h"

namespace nodemesh::kube {
namespace {

constexpr size_t kFrame = 1 << 20;       // of payload, as far as records are smaller
constexpr size_t kCopyInTurn = 4 << 20;  // about 20 ms

Result<> rename_file(const std::string& from, const std::string& to) {
  if (::rename(from.c_str(), to.c_str()) < 0) return fail_errno("renaming " + from);
  return {};
}

}  // namespace

SnapshotJournal::SnapshotJournal(io::Reactor& reactor, JournalOptions options, SnapshotHeader header,
                                 IsCurrent is_current, AsOf as_of)
    : reactor_(reactor),
      options_(std::move(options)),
      header_(std::move(header)),
      is_current_(std::move(is_current)),
      as_of_(std::move(as_of)),
      timer_([this] { tick(); }),
      copy_timer_([this] { go_on_copying(); }) {
  auto file = SnapshotWriter::create(new_path(), header_);
  if (file) {
    file_ = std::move(*file);
  } else {
    give_up(file.error().message);
  }
}

SnapshotJournal::~SnapshotJournal() {
  flush();
  if (!complete_) ::unlink(new_path().c_str());
  if (copy_) ::unlink(copy_path().c_str());
}

void SnapshotJournal::upsert(const Object& object, std::string_view json) {
  const ObjectKey& key = object.key;
  add({SnapshotRecord::Type::upsert, key.group, key.kind, key.ns, key.name, object.resource_version, json});
}

void SnapshotJournal::remove(const ObjectKey& key) {
  add({.type = SnapshotRecord::Type::remove,
       .group = key.group,
       .kind = key.kind,
       .ns = key.ns,
       .name = key.name});
}

void SnapshotJournal::add(const SnapshotRecord& record) {
  if (!file_) return;
  bool first = waiting_.empty();
  if (!append_record(waiting_, record)) {
    return give_up(
        fmt::format("{} {}/{} is larger than its format allows", record.kind, record.ns, record.name));
  }
  if (waiting_.size() >= kFrame) return flush();
  if (first) timer_.arm(reactor_, options_.flush);
}

void SnapshotJournal::complete(bool current) {
  if (file_ && !complete_) {
    add({.type = SnapshotRecord::Type::complete});
    flush();
    auto renamed = file_ ? rename_file(new_path(), options_.path) : Result<>();
    if (!renamed) give_up(renamed.error().message);
    complete_ = file_.has_value();
    copied_size_ = file_ ? file_->size() : 0;
  }
  if (!file_ && current) ::unlink(options_.path.c_str());
}

void SnapshotJournal::flush() {
  if (!file_ || waiting_.empty()) return;
  told_ = reactor_.now();
  auto written = file_->append(as_of_(), std::exchange(waiting_, {}));
  if (!written) return give_up(written.error().message);
  uint64_t most = std::min(2 * copied_size_ + options_.slack, options_.max_size);
  if (complete_ && !copy_ && file_->size() > most) return begin_copy();
  if (file_->size() > options_.max_size * (copy_ ? 2 : 1))
    give_up(fmt::format("it would be larger than {} MiB", options_.max_size >> 20));
}

void SnapshotJournal::tick() {
  flush();
  if (file_ && complete_ && reactor_.now() - told_ >= options_.tell_time) {
    told_ = reactor_.now();
    if (auto written = file_->append(as_of_(), {}); !written) return give_up(written.error().message);
  }
  if (file_) timer_.arm(reactor_, waiting_.empty() ? options_.tell_time : options_.flush);
}

void SnapshotJournal::begin_copy() {
  auto from = SnapshotReader::open(options_.path, UINT64_MAX);
  if (!from) return give_up(from.error().message);
  auto to = SnapshotWriter::create(copy_path(), header_);
  if (!to) return give_up(to.error().message);
  copy_.emplace(std::move(*from), std::move(*to));
  copy_timer_.arm(reactor_, milliseconds(0));
}

void SnapshotJournal::go_on_copying() {
  if (!copy_) return;
  auto done = copy_piece();
  if (!done) return give_up(done.error().message);
  if (!*done) return copy_timer_.arm(reactor_, milliseconds(1));
  if (auto ended = end_copy(); !ended) give_up(ended.error().message);
}

// True when everything in the file is in the copy.
Result<bool> SnapshotJournal::copy_piece() {
  for (size_t bytes = 0; bytes < kCopyInTurn;) {
    auto frame = copy_->from.next();
    if (!frame) return std::unexpected(frame.error());
    if (!*frame) return true;
    bytes += (*frame)->size() + 1;
    if (auto kept = keep(**frame); !kept) return std::unexpected(kept.error());
  }
  return false;
}

// Appends to the copy what is still true.
Result<> SnapshotJournal::keep(std::string_view payload) {
  while (!payload.empty()) {
    auto record = take_record(payload);
    if (!record) return std::unexpected(record.error());
    if (record->type != SnapshotRecord::Type::upsert || !is_current_(*record)) continue;
    append_record(copy_->kept, *record);
    if (copy_->kept.size() < kFrame) continue;
    if (auto ok = copy_->to.append({}, std::exchange(copy_->kept, {})); !ok) return ok;
  }
  return {};
}

// What was told since the last flush goes through the old file as well, so that one way leads to the copy.
Result<> SnapshotJournal::end_copy() {
  flush();
  if (!file_) return {};
  for (auto done = copy_piece(); !done || !*done; done = copy_piece()) {
    if (!done) return std::unexpected(done.error());
  }
  append_record(copy_->kept, {.type = SnapshotRecord::Type::complete});
  if (auto ok = copy_->to.append(as_of_(), copy_->kept); !ok) return ok;
  if (copy_->to.size() > options_.max_size)
    return fail(fmt::format("it would be larger than {} MiB", options_.max_size >> 20));
  if (auto ok = rename_file(copy_path(), options_.path); !ok) return ok;
  file_ = std::move(copy_->to);
  copy_.reset();
  copied_size_ = file_->size();
  return {};
}

void SnapshotJournal::give_up(const std::string& why) {
  problem_ = fmt::format("the configuration is not kept in {} for a start without the API server: {}",
                         options_.path, why);
  log::warn(log::Component::config, "the configuration is not kept for a start without the API server",
            {{"file", options_.path}, {"error", why}});
  if (complete_) ::unlink(options_.path.c_str());
  for (const auto& path : {new_path(), copy_path()}) ::unlink(path.c_str());
  file_.reset();
  copy_.reset();
  waiting_ = {};
  timer_.cancel();
}

}  // namespace nodemesh::kube
