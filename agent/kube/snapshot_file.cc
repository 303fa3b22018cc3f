#include "kube/snapshot_file.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "tls/openssl.h"

namespace nodemesh::kube {
namespace {

constexpr std::string_view kFormat = "nodemesh-snapshot-";
constexpr std::string_view kFirstLine = "nodemesh-snapshot-1\n";
constexpr size_t kDigest = sizeof(SnapshotDigest);
constexpr size_t kFrameHead = 2 * sizeof(uint32_t) + sizeof(int64_t);
constexpr size_t kMaxHeader = 64 << 10;

template <class T>
void put(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

template <class T>
T get(const char* at) {
  T value{};
  std::memcpy(&value, at, sizeof value);
  return value;
}

template <class Length>
std::optional<std::string_view> take_text(std::string_view& rest) {
  if (rest.size() < sizeof(Length)) return std::nullopt;
  size_t size = get<Length>(rest.data());
  if (rest.size() - sizeof(Length) < size) return std::nullopt;
  auto out = rest.substr(sizeof(Length), size);
  rest.remove_prefix(sizeof(Length) + size);
  return out;
}

std::string_view bytes_of(const SnapshotDigest& digest) {
  return {reinterpret_cast<const char*>(digest.data()), digest.size()};
}

// Another user could have the warden enter what namespace it likes.
Result<> check_owner(int fd, uint64_t max_size) {
  struct stat file{};
  if (::fstat(fd, &file) < 0) return fail_errno("fstat");
  if (!S_ISREG(file.st_mode)) return fail("it is not a file");
  if (file.st_uid != ::geteuid() || (file.st_mode & 077) != 0) {
    return fail(fmt::format("it belongs to user {} with mode {:o}, but must be of user {} and no other's",
                            file.st_uid, file.st_mode & 07777, ::geteuid()));
  }
  if (static_cast<uint64_t>(file.st_size) > max_size)
    return fail(fmt::format("it has {} bytes, more than the {} allowed", file.st_size, max_size));
  return {};
}

}  // namespace

std::string SnapshotHeader::to_json() const {
  return nlohmann::json(
             {{"node", node}, {"server", server}, {"kinds", kinds}, {"root_namespace", root_namespace}})
      .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

Result<SnapshotHeader> SnapshotHeader::parse(std::string_view text) {
  auto json = nlohmann::json::parse(text, nullptr, false);
  auto texts = [](const nlohmann::json& list) {
    return list.is_array() && std::ranges::all_of(list, [](const auto& item) { return item.is_string(); });
  };
  if (!json.is_object() || !json["node"].is_string() || !json["root_namespace"].is_string() ||
      !texts(json["server"]) || !texts(json["kinds"]))
    return fail("its header cannot be read");
  return SnapshotHeader{json["node"], json["server"], json["kinds"], json["root_namespace"]};
}

Result<> check_header(const SnapshotHeader& found, const SnapshotHeader& wanted) {
  if (found.node != wanted.node) return fail("it is of node \"" + found.node + "\"");
  if (std::ranges::find_first_of(found.server, wanted.server) == found.server.end())
    return fail("it is of another cluster: its API server had other certificate authorities");
  if (found.root_namespace != wanted.root_namespace)
    return fail("it was read with root namespace \"" + found.root_namespace + "\"");
  for (const auto& kind : wanted.kinds) {
    if (std::ranges::find(found.kinds, kind) == found.kinds.end()) return fail("it has no " + kind);
  }
  return {};
}

bool append_record(std::string& payload, const SnapshotRecord& record) {
  if (record.body.size() > kMaxSnapshotFrame / 2) return false;
  const std::string_view parts[] = {record.group, record.kind, record.ns, record.name, record.version};
  for (auto part : parts) {
    if (part.size() > UINT16_MAX) return false;
  }
  put(payload, static_cast<uint8_t>(record.type));
  for (auto part : parts) {
    put(payload, static_cast<uint16_t>(part.size()));
    payload.append(part);
  }
  put(payload, static_cast<uint32_t>(record.body.size()));
  payload.append(record.body);
  return true;
}

Result<SnapshotRecord> take_record(std::string_view& payload) {
  using enum SnapshotRecord::Type;
  SnapshotRecord record;
  if (payload.empty()) return fail("a record is missing");
  record.type = static_cast<SnapshotRecord::Type>(payload.front());
  payload.remove_prefix(1);
  if (record.type != upsert && record.type != remove && record.type != complete)
    return fail("it holds a record of an unknown type");
  for (auto part : {&record.group, &record.kind, &record.ns, &record.name, &record.version}) {
    auto text = take_text<uint16_t>(payload);
    if (!text) return fail("a record ends early");
    *part = *text;
  }
  auto body = take_text<uint32_t>(payload);
  if (!body) return fail("a record ends early");
  record.body = *body;
  return record;
}

Result<SnapshotWriter> SnapshotWriter::create(const std::string& path, const SnapshotHeader& header) {
  SnapshotWriter writer;
  ::unlink(path.c_str());  // O_EXCL: what is there now may be a link to anywhere
  writer.fd_.reset(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!writer.fd_) return fail_errno(path);
  if (::write(writer.fd_.get(), kFirstLine.data(), kFirstLine.size()) !=
      static_cast<ssize_t>(kFirstLine.size()))
    return fail_errno(path);
  writer.size_ = kFirstLine.size();
  writer.digest_ = tls::sha256(kFirstLine);
  if (auto written = writer.append({}, header.to_json()); !written) return std::unexpected(written.error());
  return writer;
}

Result<> SnapshotWriter::append(WallClock::time_point as_of, std::string_view payload) {
  if (failed_ || payload.size() > kMaxSnapshotFrame) return fail("it cannot be written any more");
  std::string bytes(bytes_of(digest_));
  bytes.reserve(2 * kDigest + kFrameHead + payload.size());
  put(bytes, static_cast<uint32_t>(payload.size()));
  put(bytes, ~static_cast<uint32_t>(payload.size()));
  put(bytes, int64_t{std::chrono::duration_cast<seconds>(as_of.time_since_epoch()).count()});
  bytes.append(payload);
  digest_ = tls::sha256(bytes);
  bytes.append(bytes_of(digest_));
  std::string_view rest = std::string_view(bytes).substr(kDigest);
  size_ += rest.size();
  while (!rest.empty()) {
    ssize_t done = ::write(fd_.get(), rest.data(), rest.size());
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) {
      failed_ = true;
      return fail_errno("writing it");
    }
    rest.remove_prefix(static_cast<size_t>(done));
  }
  return {};
}

Result<SnapshotReader> SnapshotReader::open(const std::string& path, uint64_t max_size) {
  SnapshotReader reader;
  reader.fd_.reset(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  if (!reader.fd_ && errno == ENOENT) return fail(Reason::NONE, "there is none");
  if (!reader.fd_) return fail_errno("it cannot be opened");
  if (auto ok = check_owner(reader.fd_.get(), max_size); !ok) return std::unexpected(ok.error());
  std::string line(kFirstLine.size(), '\0');
  auto got = reader.read(line.data(), line.size());
  if (!got) return std::unexpected(got.error());
  line.resize(*got);
  if (line != kFirstLine) {
    if (!line.starts_with(kFormat)) return fail("it is no snapshot");
    line.erase(std::min(line.find('\n'), line.size()));
    return fail("its format is " + line + ", and " +
                std::string(kFirstLine.substr(0, kFirstLine.size() - 1)) + " is read");
  }
  reader.digest_ = tls::sha256(kFirstLine);
  auto header = reader.frame();
  if (!header) return std::unexpected(header.error());
  if (!*header || (*header)->size() > kMaxHeader) return fail("its header cannot be read");
  auto parsed = SnapshotHeader::parse(**header);
  if (!parsed) return std::unexpected(parsed.error());
  reader.header_ = std::move(*parsed);
  reader.first_ = reader.at_;
  reader.first_digest_ = reader.digest_;
  return reader;
}

void SnapshotReader::rewind() {
  at_ = first_;
  digest_ = first_digest_;
  as_of_ = {};
}

Result<std::optional<std::string_view>> SnapshotReader::next() {
  return frame();
}

// Bytes from at_ on, fewer at the end of the file.
Result<size_t> SnapshotReader::read(char* to, size_t size) {
  size_t done = 0;
  while (done < size) {
    ssize_t got = ::pread(fd_.get(), to + done, size - done, static_cast<off_t>(at_ + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail_errno("reading it");
    if (got == 0) break;
    done += static_cast<size_t>(got);
  }
  if (done == size) at_ += done;
  return done;
}

Result<std::optional<std::string_view>> SnapshotReader::frame() {
  const uint64_t start = at_;
  auto cut_off = [&](size_t got) -> std::optional<std::string_view> {
    at_ = start;
    cut_ = got > 0;
    return std::nullopt;
  };
  bytes_.assign(bytes_of(digest_));
  bytes_.resize(kDigest + kFrameHead);
  auto got = read(bytes_.data() + kDigest, kFrameHead);
  if (!got) return std::unexpected(got.error());
  if (*got < kFrameHead) return cut_off(*got);
  // A length that is wrong must not look like an end that is cut off.
  auto length = get<uint32_t>(bytes_.data() + kDigest);
  auto complement = get<uint32_t>(bytes_.data() + kDigest + sizeof length);
  if (length > kMaxSnapshotFrame || length != ~complement)
    return fail(fmt::format("it is corrupted at byte {}", start));
  bytes_.resize(kDigest + kFrameHead + length + kDigest);
  got = read(bytes_.data() + kDigest + kFrameHead, length + kDigest);
  if (!got) return std::unexpected(got.error());
  if (*got < length + kDigest) return cut_off(1);
  std::string_view all = bytes_;
  auto digest = tls::sha256(all.substr(0, all.size() - kDigest));
  if (bytes_of(digest) != all.substr(all.size() - kDigest))
    return fail(fmt::format("it is corrupted between bytes {} and {}: the checksum is wrong", start, at_));
  digest_ = digest;
  as_of_ = WallClock::time_point(seconds(get<int64_t>(bytes_.data() + kDigest + 2 * sizeof(uint32_t))));
  return all.substr(kDigest + kFrameHead, length);
}

}  // namespace nodemesh::kube
