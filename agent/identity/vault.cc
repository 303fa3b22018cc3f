#include "identity/vault.h"

#include <fcntl.h>
#include <openssl/crypto.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cstring>
#include <optional>

#include <fmt/format.h>

namespace nodemesh::identity {
namespace {

// Layout: magic, then records {u8 kind, u32 length, bytes}, then SHA-256 of everything before. Little-endian:
// the reader is a process of the same machine.
constexpr std::string_view kMagic = "nodemesh-vault-1";
constexpr size_t kDigest = 32;
constexpr size_t kMaxVault = 64u << 20;
constexpr int kSeals = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;

enum class Kind : uint8_t {
  roots = 1,
  ticket_keys = 2,
  key = 3,
  chain = 4
};  // a key is followed by its chain

void put(std::string& out, Kind kind, std::string_view bytes) {
  auto size = static_cast<uint32_t>(bytes.size());
  out += static_cast<char>(kind);
  out.append(reinterpret_cast<const char*>(&size), sizeof size);
  out.append(bytes);
}

struct Record {
  Kind kind;
  std::string_view bytes;
};

std::optional<Record> take(std::string_view& rest) {
  uint32_t size = 0;
  if (rest.size() < 1 + sizeof size) return std::nullopt;
  std::memcpy(&size, rest.data() + 1, sizeof size);
  if (rest.size() - 1 - sizeof size < size) return std::nullopt;
  Record out{static_cast<Kind>(rest[0]), rest.substr(1 + sizeof size, size)};
  rest.remove_prefix(1 + sizeof size + size);
  return out;
}

// The framing alone: what is inside a record is judged by its reader.
Result<std::string_view> check_frame(std::string_view bytes) {
  if (bytes.size() < kMagic.size() + kDigest) return fail("vault: too short");
  if (!bytes.starts_with(kMagic)) return fail("vault: not a vault of this version");
  std::string_view body = bytes.substr(0, bytes.size() - kDigest);
  auto digest = tls::sha256(body);
  if (CRYPTO_memcmp(digest.data(), bytes.data() + body.size(), kDigest) != 0)
    return fail("vault: the checksum is wrong");
  return body.substr(kMagic.size());
}

// Those of another version's layout are left out: peers then make a full handshake.
Result<> read_ticket_keys(std::string_view bytes, VaultContents& out) {
  tls::TicketKeys keys{};
  if (bytes.size() != sizeof keys) return fail("vault: ticket keys of a wrong length were left out");
  std::memcpy(static_cast<void*>(&keys), bytes.data(), sizeof keys);
  out.ticket_keys = std::make_shared<const tls::TicketKeys>(keys);
  return {};
}

// Wipes a buffer that held keys, however the function is left.
struct Wiped {
  std::string bytes;
  ~Wiped() { OPENSSL_cleanse(bytes.data(), bytes.size()); }
};

}  // namespace

std::string encode_vault(const VaultContents& contents) {
  static_assert(std::is_trivially_copyable_v<tls::TicketKeys>);
  std::string out(kMagic);
  if (contents.trust) put(out, Kind::roots, contents.trust->pem());
  if (contents.ticket_keys) {
    put(out, Kind::ticket_keys,
        {reinterpret_cast<const char*>(contents.ticket_keys.get()), sizeof(tls::TicketKeys)});
  }
  for (const auto& credential : contents.credentials) {
    Wiped key{credential->key_pem()};
    put(out, Kind::key, key.bytes);
    put(out, Kind::chain, credential->chain_pem());
  }
  auto digest = tls::sha256(out);
  return out.append(reinterpret_cast<const char*>(digest.data()), digest.size());
}

Result<VaultContents> decode_vault(std::string_view bytes, std::vector<std::string>* dropped) {
  auto body = check_frame(bytes);
  if (!body) return std::unexpected(body.error());
  VaultContents out;
  std::optional<std::string_view> key;
  while (!body->empty()) {
    auto record = take(*body);
    if (!record) return fail("vault: a record runs past the end");
    if ((record->kind == Kind::chain) != key.has_value())
      return fail("vault: a key and its chain are not together");
    switch (record->kind) {
      case Kind::roots: {
        auto trust = tls::TrustBundle::from_pem(record->bytes);
        if (!trust) return fail("vault: " + trust.error().message);
        out.trust = std::move(*trust);
        break;
      }
      case Kind::ticket_keys:
        if (auto read = read_ticket_keys(record->bytes, out); !read && dropped != nullptr)
          dropped->push_back(read.error().message);
        break;
      case Kind::key:
        key = record->bytes;
        break;
      case Kind::chain: {
        auto credential = tls::Credential::from_pem(*std::exchange(key, std::nullopt), record->bytes);
        if (credential) {
          out.credentials.push_back(std::move(*credential));
        } else if (dropped != nullptr) {
          dropped->push_back("vault: a credential was left out: " + credential.error().message);
        }
        break;
      }
      default:
        return fail("vault: a record of an unknown kind");
    }
  }
  if (key) return fail("vault: a key without a chain at the end");
  return out;
}

Result<Fd> write_vault(const VaultContents& contents) {
  Wiped sealed{encode_vault(contents)};
  if (sealed.bytes.size() > kMaxVault) return fail("vault: more than 64 MiB of credentials");
  Fd file(::memfd_create("nodemesh-vault", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!file) return fail_errno("vault: memfd_create");
  for (size_t at = 0; at < sealed.bytes.size();) {
    ssize_t put =
        ::pwrite(file.get(), sealed.bytes.data() + at, sealed.bytes.size() - at, static_cast<off_t>(at));
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) return fail_errno("vault: write");
    at += static_cast<size_t>(put);
  }
  if (::fcntl(file.get(), F_ADD_SEALS, kSeals) != 0) return fail_errno("vault: F_ADD_SEALS");
  return file;
}

Result<VaultContents> read_vault(int fd, std::vector<std::string>* dropped) {
  int seals = ::fcntl(fd, F_GET_SEALS);
  if (seals < 0) return fail_errno("vault: F_GET_SEALS (is it a memfd?)");
  if ((seals & kSeals) != kSeals)
    return fail("vault: the descriptor is not sealed, so its content may still change");
  struct stat info{};
  if (::fstat(fd, &info) != 0) return fail_errno("vault: fstat");
  if (info.st_size < 0 || static_cast<size_t>(info.st_size) > kMaxVault)
    return fail("vault: larger than 64 MiB");
  Wiped sealed{std::string(static_cast<size_t>(info.st_size), '\0')};
  for (size_t at = 0; at < sealed.bytes.size();) {
    ssize_t got = ::pread(fd, sealed.bytes.data() + at, sealed.bytes.size() - at, static_cast<off_t>(at));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return fail_errno("vault: read");
    at += static_cast<size_t>(got);
  }
  return decode_vault(sealed.bytes, dropped);
}

}  // namespace nodemesh::identity
