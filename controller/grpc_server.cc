#include "controller/grpc_server.h"

#include <grpcpp/grpcpp.h>
#include <grpcpp/server_posix.h>

#include <chrono>
#include <map>
#include <string_view>

#include <fmt/format.h>

#include "istio/v1/auth/ca.grpc.pb.h"

namespace nodemesh::controller {
namespace {

using istio::v1::auth::IstioCertificateRequest;
using istio::v1::auth::IstioCertificateResponse;
using istio::v1::auth::IstioCertificateService;

constexpr int kMaxMessage = 64 * 1024;
constexpr int kMaxHeaders = 32 * 1024;  // a token of 16 KiB, and the rest
constexpr size_t kMaxCalls = 1024;      // under way
constexpr size_t kMaxCallsOfPeer = 32;  // an agent has 8

grpc::Status status_of(Refusal refusal) {
  switch (refusal) {
    case Refusal::request_invalid:
      return {grpc::StatusCode::INVALID_ARGUMENT, "CSR signing error"};
    case Refusal::internal:
      return {grpc::StatusCode::INTERNAL, "CSR signing error"};
    case Refusal::api_unavailable:
    case Refusal::overloaded:
      return {grpc::StatusCode::UNAVAILABLE, "try again later"};
    default:
      // Istio's words. Which check failed is for our log only.
      return {grpc::StatusCode::UNAUTHENTICATED, "request authenticate failure"};
  }
}

std::string bearer_token(const grpc::CallbackServerContext& context) {
  constexpr std::string_view kBearer = "Bearer ";
  auto found = context.client_metadata().find("authorization");
  if (found == context.client_metadata().end()) return {};
  std::string_view value(found->second.data(), found->second.size());
  return value.starts_with(kBearer) ? std::string(value.substr(kBearer.size())) : std::string();
}

// The calls that gRPC has handed over and that nobody has answered yet. Main thread.
class Calls {
 public:
  explicit Calls(Issuer& issuer) : issuer_(issuer) {}

  void begin(grpc::ServerUnaryReactor* reactor, IstioCertificateResponse* out, Caller caller,
             Issuer::Request request) {
    size_t& of_peer = peers_[caller.peer];
    if (stopped_ || calls_.size() >= kMaxCalls || of_peer >= kMaxCallsOfPeer) {
      if (of_peer == 0) peers_.erase(caller.peer);
      return reactor->Finish(status_of(Refusal::overloaded));
    }
    ++of_peer;
    uint64_t id = next_id_++;
    calls_.emplace(id, Call{reactor, out, caller.peer});
    issuer_.issue(std::move(caller), std::move(request),
                  [this, id](auto chain) { end(id, std::move(chain)); });
  }

  void stop() {
    stopped_ = true;
    while (!calls_.empty()) end(calls_.begin()->first, std::unexpected(Refusal::overloaded));
  }

 private:
  struct Call {
    grpc::ServerUnaryReactor* reactor;
    IstioCertificateResponse* out;
    std::string peer;
  };

  void end(uint64_t id, std::expected<std::vector<std::string>, Refusal> chain) {
    auto found = calls_.find(id);
    if (found == calls_.end()) return;
    Call call = std::move(found->second);
    calls_.erase(found);
    if (--peers_[call.peer] == 0) peers_.erase(call.peer);
    if (!chain) return call.reactor->Finish(status_of(chain.error()));
    for (std::string& pem : *chain) call.out->add_cert_chain(std::move(pem));
    call.reactor->Finish(grpc::Status::OK);
  }

  Issuer& issuer_;
  uint64_t next_id_ = 1;
  std::map<uint64_t, Call> calls_;
  std::map<std::string, size_t> peers_;  // calls of each
  bool stopped_ = false;
};

class Serving final : public GrpcServer {
 public:
  Serving(io::Reactor& reactor, Issuer& issuer)
      : calls_(issuer), service_(*this), main_(reactor), reactor_(reactor) {}

  ~Serving() override {
    if (!server_) return;
    calls_.stop();
    server_->Shutdown(std::chrono::system_clock::now() + std::chrono::milliseconds(200));
    reactor_.run_once(milliseconds(0));  // calls that came meanwhile, which are refused now
    server_->Wait();
  }

  Result<> start() {
    grpc::ServerBuilder builder;
    builder.RegisterService(&service_);
    builder.SetMaxReceiveMessageSize(kMaxMessage);
    const std::pair<const char*, int> arguments[] = {
        {GRPC_ARG_MAX_CONCURRENT_STREAMS, 64},
        {GRPC_ARG_MAX_METADATA_SIZE, kMaxHeaders},
        // A peer that is gone is noticed; one that says nothing need not be kept.
        {GRPC_ARG_KEEPALIVE_TIME_MS, 60'000},
        {GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20'000},
        {GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10'000},
        {GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1},
        {GRPC_ARG_MAX_CONNECTION_IDLE_MS, 300'000},
        // Agents spread over the replicas anew, and meet the certificate of a new root.
        {GRPC_ARG_MAX_CONNECTION_AGE_MS, 3'600'000},
        {GRPC_ARG_MAX_CONNECTION_AGE_GRACE_MS, 30'000}};
    for (auto [name, value] : arguments) builder.AddChannelArgument(name, value);
    server_ = builder.BuildAndStart();
    if (!server_) return fail("gRPC server did not start");
    return {};
  }

  void serve(Fd peer, std::string name) override {
    names_[fmt::format("fd:{}", peer.get())] = std::move(name);
    grpc::AddInsecureChannelFromFd(server_.get(), peer.release());
  }

 private:
  class Service final : public IstioCertificateService::CallbackService {
   public:
    explicit Service(Serving& owner) : owner_(owner) {}
    grpc::ServerUnaryReactor* CreateCertificate(grpc::CallbackServerContext* context,
                                                const IstioCertificateRequest* in,
                                                IstioCertificateResponse* out) override {
      grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
      Issuer::Request request{
          .csr = in->csr(), .lifetime_seconds = in->validity_duration(), .impersonated_identity = {}};
      const auto& fields = in->metadata().fields();
      if (auto found = fields.find("ImpersonatedIdentity"); found != fields.end()) {
        request.impersonated_identity = found->second.string_value();
        // Present but no string: not the same as absent, which means "my own".
        if (request.impersonated_identity.empty()) request.impersonated_identity = "(empty)";
      }
      owner_.main_.post([&owner = owner_, reactor, out,
                         caller = Caller{bearer_token(*context), context->peer()},
                         request = std::move(request)]() mutable {
        caller.peer = owner.name_of(caller.peer);
        owner.calls_.begin(reactor, out, std::move(caller), std::move(request));
      });
      return reactor;
    }

   private:
    Serving& owner_;
  };

  // gRPC names a connection that it was handed by its descriptor.
  std::string name_of(const std::string& peer) const {
    auto found = names_.find(peer);
    return found == names_.end() ? peer : found->second;
  }

  Calls calls_;
  Service service_;
  io::Mailbox main_;
  io::Reactor& reactor_;
  std::map<std::string, std::string> names_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace

Result<std::unique_ptr<GrpcServer>> GrpcServer::start(io::Reactor& reactor, Issuer& issuer) {
  auto out = std::make_unique<Serving>(reactor, issuer);
  if (auto started = out->start(); !started) return std::unexpected(started.error());
  return out;
}

}  // namespace nodemesh::controller
