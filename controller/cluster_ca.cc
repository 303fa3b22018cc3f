#include "controller/cluster_ca.h"

#include <openssl/evp.h>

#include <algorithm>

#include <fmt/format.h>

#include "base/log.h"
#include "controller/time_text.h"

namespace nodemesh::controller {
namespace {

constexpr auto kRotate = "nodemesh.dev/rotate-root";
constexpr size_t kMaxValue = 1 << 20;  // of a Secret, as the API server has it

std::string encode(const std::string& bytes) {
  std::string out((bytes.size() + 2) / 3 * 4 + 1, '\0');
  int size =
      EVP_EncodeBlock(reinterpret_cast<unsigned char*>(out.data()),
                      reinterpret_cast<const unsigned char*>(bytes.data()), static_cast<int>(bytes.size()));
  out.resize(static_cast<size_t>(size));
  return out;
}

std::optional<std::string> decode(const std::string& text) {
  if (text.size() % 4 != 0 || text.size() > kMaxValue * 2) return std::nullopt;
  std::string out(text.size() / 4 * 3 + 1, '\0');
  int size =
      EVP_DecodeBlock(reinterpret_cast<unsigned char*>(out.data()),
                      reinterpret_cast<const unsigned char*>(text.data()), static_cast<int>(text.size()));
  if (size < 0) return std::nullopt;
  // EVP_DecodeBlock counts the padding as bytes.
  size_t padding = text.ends_with("==") ? 2 : text.ends_with("=") ? 1 : 0;
  out.resize(static_cast<size_t>(size) - std::min(padding, static_cast<size_t>(size)));
  return out;
}

}  // namespace

Result<SecretData> read_secret_data(const Json& secret) {
  SecretData out;
  const Json* data = find(secret, {"data"});
  if (data == nullptr || !data->is_object()) return out;
  for (const auto& [key, value] : data->items()) {
    auto bytes = value.is_string() ? decode(value.get<std::string>()) : std::nullopt;
    if (!bytes) return fail(fmt::format("data[{}] is no base64", key));
    out[key] = std::move(*bytes);
  }
  return out;
}

Json write_secret_data(const SecretData& data) {
  Json out = Json::object();
  for (const auto& [key, bytes] : data) out[key] = encode(bytes);
  return out;
}

ClusterCa::ClusterCa(io::Reactor& reactor, const Clock& clock, Api& api, CertificateAuthority& authority,
                     Settings settings, OnChange on_change)
    : reactor_(reactor),
      clock_(clock),
      api_(api),
      authority_(authority),
      settings_(std::move(settings)),
      on_change_(std::move(on_change)) {}

void ClusterCa::begin() {
  leads_ = true;
  refresh();
}

void ClusterCa::call(kube::Verb verb, std::string where, std::string body,
                     void (ClusterCa::*then)(ApiReply)) {
  api_.call(verb, std::move(where), std::move(body),
            [this, alive = std::weak_ptr<bool>(alive_), then](ApiReply reply) {
              if (!alive.expired()) (this->*then)(std::move(reply));
            });
}

// One round: cacerts, then nodemesh-ca, then perhaps a write. Rounds never overlap.
void ClusterCa::refresh() {
  if (asking_) {
    again_ = true;
    return;
  }
  asking_ = true;
  call(kube::Verb::get, path() + "/" + settings_.plugged_secret, {}, &ClusterCa::on_plugged);
}

void ClusterCa::finish() {
  asking_ = false;
  if (std::exchange(again_, false)) return refresh();
  timer_.arm(reactor_, settings_.refresh);
}

void ClusterCa::on_plugged(ApiReply plugged) {
  read_plugged(plugged);
  call(kube::Verb::get, path() + "/" + settings_.secret, {}, &ClusterCa::on_secret);
}

void ClusterCa::read_plugged(const ApiReply& reply) {
  std::string name = fmt::format("Secret {}/{}", settings_.ns, settings_.plugged_secret);
  plugged_.reset();
  plugged_trouble_.clear();
  plugged_known_ = reply.ok() || reply.not_found();
  plugged_exists_ = reply.ok();
  if (!plugged_known_) plugged_trouble_ = name + " cannot be read: " + reply.error;
  if (!plugged_exists_) return;
  auto data = read_secret_data(parse_object(reply.body));
  auto material = data ? read_cacerts(*data) : std::unexpected(data.error());
  auto signer = material ? Signer::load(*material, clock_.wall()) : std::unexpected(material.error());
  if (signer) {
    plugged_ = std::move(*material);
  } else {
    plugged_trouble_ = name + " is refused: " + signer.error().message;
  }
}

void ClusterCa::on_secret(ApiReply reply) {
  if (reply.not_found()) return create();
  Json secret = parse_object(reply.body);
  if (!reply.ok() || secret.is_null()) {
    complain(fmt::format("Secret {}/{} cannot be read: {}", settings_.ns, settings_.secret, reply.error));
    return finish();
  }
  auto state = adopt(secret);
  if (leads_ && state) return advance(std::move(secret), *state);
  step_ended({});  // none is ours to take
  finish();
}

void ClusterCa::complain(std::string what) {
  read_trouble_ = std::move(what);
  tell();
}

void ClusterCa::step_ended(std::string trouble) {
  step_trouble_ = std::move(trouble);
  tell();
}

void ClusterCa::tell() {
  std::string all = read_trouble_;
  if (!all.empty() && !step_trouble_.empty()) all += "; ";
  all += step_trouble_;
  if (all != trouble_ && !all.empty()) log::error(log::Component::controller, all);
  trouble_ = std::move(all);
}

Result<CaState> ClusterCa::begin_with() const {
  if (plugged_) return first_state(*plugged_, true, clock_.wall());
  auto made = make_root(settings_.trust_domain, settings_.root_lifetime, clock_.wall());
  if (!made) return std::unexpected(made.error());
  return first_state(std::move(*made), false, clock_.wall());
}

// Any replica: whoever is first, it happens once. A Secret that was deleted under a running controller comes
// back as it was: an accident must not cut the mesh off from itself.
void ClusterCa::create() {
  complain(plugged_trouble_);
  // An operator who gave cacerts does not want the mesh to begin with another root.
  if (!state_ && (!plugged_known_ || (plugged_exists_ && !plugged_))) return finish();
  auto first = state_ ? Result<CaState>(*state_) : begin_with();
  if (!first) {
    step_ended(first.error().message);
    return finish();
  }
  Json secret = {{"apiVersion", "v1"},
                 {"kind", "Secret"},
                 {"type", "nodemesh.dev/ca"},
                 {"metadata",
                  {{"name", settings_.secret},
                   {"namespace", settings_.ns},
                   {"labels", {{"app.kubernetes.io/managed-by", "nodemesh-controller"}}}}},
                 {"data", write_secret_data(write_state(*first))}};
  log::info(log::Component::controller, "creating the authority of the cluster",
            {{"secret", settings_.secret},
             {"from", state_     ? "memory"
                      : plugged_ ? settings_.plugged_secret
                                 : "a new root"}});
  call(kube::Verb::post, path(), dump(secret), &ClusterCa::on_put);
}

// Puts it in force if it is good. Returns what the replicas agree on, which the leader can lead out of even
// when nothing can sign with it any more; nullopt where it cannot be read.
std::optional<CaState> ClusterCa::adopt(const Json& secret) {
  std::string name =
      fmt::format("Secret {}/{} is refused, the last good one stays: ", settings_.ns, settings_.secret);
  auto data = read_secret_data(secret);
  auto state = data ? read_state(*data) : std::unexpected(data.error());
  if (!state) {
    complain(name + state.error().message);
    return std::nullopt;
  }
  auto signer = Signer::load(state->active, clock_.wall());
  if (!signer) {
    complain(name + signer.error().message);
    return *state;
  }
  complain(plugged_trouble_);
  bool changed = !state_ || trust_bundle(*state_) != trust_bundle(*state) || state_->active != state->active;
  state_ = std::move(*state);
  if (!changed) return state_;
  authority_.use(std::move(*signer), trust_bundle(*state_));
  log::info(log::Component::controller, "signing certificate in force",
            {{"serial", tls::serial_of(authority_.signer()->certificate())},
             {"not_after", WallClock::to_time_t(authority_.signer()->not_after())},
             {"plugged_in", state_->plugged_in ? "yes" : "no"},
             {"next", state_->next ? "announced" : "none"}});
  on_change_();
  return state_;
}

Result<std::optional<CaState>> ClusterCa::next_state(const CaState& state, std::string rotation) {
  auto now = clock_.wall();
  CaWish wish{.cacerts = plugged_, .rotation = std::move(rotation)};
  switch (due_step(state, wish, settings_.times, now)) {
    case CaStep::none:
      return std::nullopt;
    case CaStep::drop_retired:
      return without_retired(state);
    case CaStep::announce:
      return announced(state, *plugged_, true, settings_.times, now);
    case CaStep::sign_with_next:
      return switched(state, settings_.times, now);
    case CaStep::make_root:
      break;
  }
  auto made = make_root(settings_.trust_domain, settings_.root_lifetime, now);
  if (!made) return std::unexpected(made.error());
  CaState out = announced(state, std::move(*made), false, settings_.times, now);
  if (!wish.rotation.empty()) out.rotation = wish.rotation;
  return out;
}

void ClusterCa::advance(Json secret, const CaState& state) {
  auto next = next_state(state, text_at(secret, {"metadata", "annotations", kRotate}));
  if (!next || !*next) {
    step_ended(next ? std::string() : next.error().message);
    return finish();
  }
  log::info(log::Component::controller, "moving the authority on",
            {{"next", (*next)->next ? "announced, may sign from " + write_time((*next)->next_at) : "none"},
             {"retired",
              (*next)->retired_roots_pem.empty() ? "none" : "until " + write_time((*next)->retired_until)}});
  put(std::move(secret), **next);
}

// With the resourceVersion that was read: a conflict means that somebody else took a step.
void ClusterCa::put(Json secret, const CaState& state) {
  secret["data"] = write_secret_data(write_state(state));
  again_ = true;  // the next round reads what is in force then
  call(kube::Verb::put, path() + "/" + settings_.secret, dump(secret), &ClusterCa::on_put);
}

void ClusterCa::on_put(ApiReply reply) {
  if (!reply.ok() && !reply.conflict()) {
    step_ended(
        fmt::format("Secret {}/{} cannot be written: {}", settings_.ns, settings_.secret, reply.error));
    again_ = false;
    return finish();
  }
  step_ended({});
  again_ = true;
  finish();
}

}  // namespace nodemesh::controller
