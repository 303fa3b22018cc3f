#include "controller/grpc_server.h"

#include <grpcpp/grpcpp.h>
#include <grpcpp/server_posix.h>
#include <sys/socket.h>

#include <chrono>

#include "base/log.h"
#include "controller/unix_listener.h"
#include "istio/v1/auth/ca.grpc.pb.h"

namespace nodemesh::controller {
namespace {

using istio::v1::auth::IstioCertificateRequest;
using istio::v1::auth::IstioCertificateResponse;
using istio::v1::auth::IstioCertificateService;

constexpr int kMaxMessage = 64 * 1024;

grpc::Status status_of(Issuer::Refusal refusal) {
  switch (refusal) {
    // Istio's words. Which check failed is for our log only.
    case Issuer::Refusal::unauthenticated:
      return {grpc::StatusCode::UNAUTHENTICATED, "request authenticate failure"};
    case Issuer::Refusal::invalid_request:
      return {grpc::StatusCode::INVALID_ARGUMENT, "CSR signing error"};
    case Issuer::Refusal::internal:
      break;
  }
  return {grpc::StatusCode::INTERNAL, "CSR signing error"};
}

std::string bearer_token(const grpc::CallbackServerContext& context) {
  constexpr std::string_view kBearer = "Bearer ";
  auto found = context.client_metadata().find("authorization");
  if (found == context.client_metadata().end()) return {};
  std::string_view value(found->second.data(), found->second.size());
  return value.starts_with(kBearer) ? std::string(value.substr(kBearer.size())) : std::string();
}

class Service final : public IstioCertificateService::CallbackService {
 public:
  Service(io::Mailbox& main, const Issuer& issuer) : main_(main), issuer_(issuer) {}

  grpc::ServerUnaryReactor* CreateCertificate(grpc::CallbackServerContext* context,
                                              const IstioCertificateRequest* in,
                                              IstioCertificateResponse* out) override {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    Issuer::Request request{
        .csr = in->csr(), .lifetime_seconds = in->validity_duration(), .impersonated_identity = {}};
    const auto& fields = in->metadata().fields();
    if (auto found = fields.find("ImpersonatedIdentity"); found != fields.end()) {
      request.impersonated_identity = found->second.string_value();
    }
    main_.post([this, reactor, out, caller = Caller{bearer_token(*context)}, request = std::move(request)] {
      auto chain = issuer_.issue(caller, request);
      if (!chain) return reactor->Finish(status_of(chain.error()));
      for (std::string& pem : *chain) out->add_cert_chain(std::move(pem));
      reactor->Finish(grpc::Status::OK);
    });
    return reactor;
  }

 private:
  io::Mailbox& main_;
  const Issuer& issuer_;
};

class Listening final : public GrpcServer, private io::EventHandler {
 public:
  Listening(io::Reactor& reactor, const Issuer& issuer, Settings settings)
      : reactor_(reactor), settings_(std::move(settings)), main_(reactor), service_(main_, issuer) {}

  ~Listening() override {
    if (socket_) {
      reactor_.remove(socket_.get(), *this);
      ::unlink(settings_.socket_path.c_str());
    }
    if (!server_) return;
    // Calls wait for this very thread: turn the reactor until gRPC has let go of them.
    server_->Shutdown(std::chrono::system_clock::now() + std::chrono::milliseconds(200));
    reactor_.run_once(milliseconds(0));
    server_->Wait();
  }

  Result<> start() {
    auto socket = listen_unix(settings_.socket_path, settings_.socket_gid);
    if (!socket) return std::unexpected(socket.error());
    socket_ = std::move(*socket);
    grpc::ServerBuilder builder;
    builder.RegisterService(&service_);
    builder.SetMaxReceiveMessageSize(kMaxMessage);
    builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, 64);
    server_ = builder.BuildAndStart();
    if (!server_) return fail("gRPC server did not start");
    return reactor_.add(socket_.get(), *this);
  }

 private:
  void on_events(uint32_t) override {
    while (true) {
      Fd peer(::accept4(socket_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
      if (!peer && (errno == EINTR || errno == ECONNABORTED)) continue;
      if (!peer) return;
      ucred who{};
      socklen_t size = sizeof who;
      bool known = ::getsockopt(peer.get(), SOL_SOCKET, SO_PEERCRED, &who, &size) == 0;
      if (!known || !settings_.allowed_uids.contains(who.uid)) {
        log::warn(log::Component::controller, "connection refused: uid is not allowed",
                  {{"uid", who.uid}, {"pid", who.pid}});
        continue;
      }
      log::debug(log::Component::controller, "connection", {{"uid", who.uid}, {"pid", who.pid}});
      grpc::AddInsecureChannelFromFd(server_.get(), peer.release());
    }
  }

  io::Reactor& reactor_;
  Settings settings_;
  io::Mailbox main_;
  Service service_;
  Fd socket_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace

Result<std::unique_ptr<GrpcServer>> GrpcServer::start(io::Reactor& reactor, const Issuer& issuer,
                                                      Settings settings) {
  auto out = std::make_unique<Listening>(reactor, issuer, std::move(settings));
  if (auto started = out->start(); !started) return std::unexpected(started.error());
  return out;
}

}  // namespace nodemesh::controller
