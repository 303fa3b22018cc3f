// Keys, certificate chains, roots and session ticket keys in a sealed memfd, which the warden holds, unread,
// for the next proxy process: so a restarted proxy serves while the CA is away. No file system ever sees a
// key.
//
// What is read back is not trusted: the process that wrote it may have been dying. Length, checksum,
// structure, and each key against its certificate are checked; one bad credential is dropped alone, ticket
// keys of another layout likewise, a bad frame refuses the whole.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/fd.h"
#include "base/reason.h"
#include "tls/context.h"
#include "tls/credential.h"

namespace nodemesh::identity {

struct VaultContents {
  std::vector<std::shared_ptr<const tls::Credential>> credentials;
  std::shared_ptr<const tls::TrustBundle> trust;       // may be null
  std::shared_ptr<const tls::TicketKeys> ticket_keys;  // may be null
};

// A memfd (close-on-exec) sealed against every change, its offset at 0.
Result<Fd> write_vault(const VaultContents& contents);
// Reads all of `fd` by pread and leaves it open. Refuses a descriptor without the seals: someone could still
// write. `dropped`, when given, receives one sentence for each thing that was left out.
Result<VaultContents> read_vault(int fd, std::vector<std::string>* dropped = nullptr);

// The two halves without the descriptor, for tests and the fuzzer.
std::string encode_vault(const VaultContents& contents);
Result<VaultContents> decode_vault(std::string_view bytes, std::vector<std::string>* dropped = nullptr);

}  // namespace nodemesh::identity
