#include "controller/ca_state.h"

#include <algorithm>

#include <fmt/format.h>

#include "controller/time_text.h"

namespace nodemesh::controller {
namespace {

constexpr auto kSlack = std::chrono::minutes(5);  // for clocks that differ

const std::string& value(const SecretData& data, const std::string& key) {
  static const std::string kNone;
  auto found = data.find(key);
  return found == data.end() ? kNone : found->second;
}

CaMaterial read_material(const SecretData& data, const std::string& prefix) {
  return {.cert_pem = value(data, prefix + "ca-cert.pem"),
          .key_pem = value(data, prefix + "ca-key.pem"),
          .chain_pem = value(data, prefix + "cert-chain.pem"),
          .roots_pem = value(data, prefix + "root-cert.pem")};
}

void write_material(SecretData& out, const std::string& prefix, const CaMaterial& material) {
  out[prefix + "ca-cert.pem"] = material.cert_pem;
  out[prefix + "ca-key.pem"] = material.key_pem;
  out[prefix + "cert-chain.pem"] = material.chain_pem;
  out[prefix + "root-cert.pem"] = material.roots_pem;
}

Result<WallClock::time_point> required_time(const SecretData& data, const std::string& key) {
  auto time = read_time(value(data, key));
  if (!time)
    return fail(fmt::format("{}: \"{}\" is not a time like 2026-01-31T23:59:59Z", key, value(data, key)));
  return *time;
}

// From when until when the first certificate of `pem` is good; empty where it does not parse.
std::optional<std::pair<WallClock::time_point, WallClock::time_point>> life_of(const std::string& pem) {
  auto certificates = tls::parse_certificates(pem);
  if (!certificates || certificates->empty()) return std::nullopt;
  X509* first = certificates->front().get();
  auto from = tls::to_time(X509_get0_notBefore(first)), until = tls::to_time(X509_get0_notAfter(first));
  if (!from || !until) return std::nullopt;
  return std::pair(*from, *until);
}

bool is_usable(const CaMaterial& material, WallClock::time_point now) {
  auto life = life_of(material.cert_pem);
  return life && now < life->second;
}

bool wants_new_root(const CaState& state, const CaWish& wish, const CaTimes& times,
                    WallClock::time_point now) {
  if (state.plugged_in || state.next) return false;
  if (!wish.rotation.empty() && wish.rotation != state.rotation) return true;
  auto life = life_of(state.active.cert_pem);
  if (!life) return false;
  auto share = std::chrono::duration<double>(life->second - life->first) * times.renew_share;
  return life->second - now < std::chrono::duration_cast<WallClock::duration>(share);
}

// What `before` trusted and `after` would not, trusted on for as long as certificates below it may live.
void retire(const CaState& before, CaState& after, const CaTimes& times, WallClock::time_point now) {
  std::string old = trust_bundle(before);
  if (holds_roots(trust_bundle(after), old)) return;
  after.retired_roots_pem = old;
  after.retired_until = std::max(before.retired_roots_pem.empty() ? now : before.retired_until,
                                 now + times.longest_lifetime + kSlack);
}

}  // namespace

std::string trust_bundle(const CaState& state) {
  std::string out = join_roots(state.active.roots_pem, state.next ? state.next->roots_pem : "");
  return join_roots(out, state.retired_roots_pem);
}

SecretData write_state(const CaState& state) {
  SecretData out;
  write_material(out, "", state.active);
  out["trusted-since"] = write_time(state.trusted_since);
  out["plugged-in"] = state.plugged_in ? "true" : "false";
  if (!state.rotation.empty()) out["rotation"] = state.rotation;
  if (state.next) {
    write_material(out, "next-", *state.next);
    out["next-at"] = write_time(state.next_at);
  }
  if (!state.retired_roots_pem.empty()) {
    out["retired-root-cert.pem"] = state.retired_roots_pem;
    out["retired-until"] = write_time(state.retired_until);
  }
  return out;
}

Result<CaState> read_state(const SecretData& data) {
  CaState out;
  out.active = read_material(data, "");
  for (const char* key : {"ca-cert.pem", "ca-key.pem", "root-cert.pem"}) {
    if (value(data, key).empty())
      return fail(fmt::format("{} is missing; restore the Secret, or delete it to begin a new mesh", key));
  }
  auto since = required_time(data, "trusted-since");
  if (!since) return std::unexpected(since.error());
  out.trusted_since = *since;
  out.plugged_in = value(data, "plugged-in") == "true";
  out.rotation = value(data, "rotation");
  if (data.contains("next-ca-cert.pem")) {
    auto at = required_time(data, "next-at");
    if (!at) return std::unexpected(at.error());
    out.next = read_material(data, "next-");
    out.next_at = *at;
  }
  if (data.contains("retired-root-cert.pem")) {
    auto until = required_time(data, "retired-until");
    if (!until) return std::unexpected(until.error());
    out.retired_roots_pem = value(data, "retired-root-cert.pem");
    out.retired_until = *until;
  }
  return out;
}

Result<CaMaterial> read_cacerts(const SecretData& data) {
  bool cert_manager = !data.contains("ca-cert.pem") && data.contains("tls.crt");
  CaMaterial out = cert_manager ? CaMaterial{.cert_pem = value(data, "tls.crt"),
                                             .key_pem = value(data, "tls.key"),
                                             .chain_pem = {},
                                             .roots_pem = value(data, "ca.crt")}
                                : read_material(data, "");
  const char* absent = out.cert_pem.empty()    ? "ca-cert.pem"
                       : out.key_pem.empty()   ? (cert_manager ? "tls.key" : "ca-key.pem")
                       : out.roots_pem.empty() ? (cert_manager ? "ca.crt" : "root-cert.pem")
                                               : nullptr;
  if (absent != nullptr) return fail(fmt::format("{} is missing; it is needed beside the others", absent));
  return out;
}

CaStep due_step(const CaState& state, const CaWish& wish, const CaTimes& times, WallClock::time_point now) {
  if (!state.retired_roots_pem.empty() && now >= state.retired_until) return CaStep::drop_retired;
  const CaMaterial& aim = state.next ? *state.next : state.active;
  if (wish.cacerts && *wish.cacerts != aim) return CaStep::announce;
  if (state.next && (now >= state.next_at || !is_usable(state.active, now))) return CaStep::sign_with_next;
  if (!wish.cacerts && wants_new_root(state, wish, times, now)) return CaStep::make_root;
  return CaStep::none;
}

CaState first_state(CaMaterial material, bool plugged_in, WallClock::time_point now) {
  CaState out;
  out.active = std::move(material);
  out.plugged_in = plugged_in;
  out.trusted_since = now;
  return out;
}

CaState announced(const CaState& state, CaMaterial material, bool plugged_in, const CaTimes& times,
                  WallClock::time_point now) {
  CaState out = state;
  out.plugged_in = plugged_in;
  bool same_signer = material.cert_pem == state.active.cert_pem && material.key_pem == state.active.key_pem;
  bool known = holds_roots(trust_bundle(state), material.roots_pem);
  if (!known) out.trusted_since = now;
  if (same_signer) {  // only what it is to be trusted by differs, or an announcement is taken back
    out.next.reset();
    out.active = std::move(material);
  } else {
    out.next = std::move(material);
    out.next_at = out.trusted_since + std::max(times.overlap, times.longest_lifetime);
  }
  retire(state, out, times, now);
  return out;
}

CaState switched(const CaState& state, const CaTimes& times, WallClock::time_point now) {
  CaState out = state;
  out.active = *state.next;
  out.next.reset();
  out.next_at = {};
  retire(state, out, times, now);
  return out;
}

CaState without_retired(const CaState& state) {
  CaState out = state;
  out.retired_roots_pem.clear();
  out.retired_until = {};
  return out;
}

}  // namespace nodemesh::controller
