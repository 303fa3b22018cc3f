#include "identity/ca_client.h"

#include <fcntl.h>

#include <array>
#include <cerrno>
#include <cstring>

#include <fmt/format.h>

#include "identity/csr.h"
#include "istio/v1/auth/ca.pb.h"

namespace nodemesh::identity {
namespace {

constexpr auto kMethod = "/istio.v1.auth.IstioCertificateService/CreateCertificate";
constexpr size_t kMaxToken = 16 * 1024;
constexpr int kMaxChain = 16;

Result<std::string> read_token(const std::string& path) {
  Fd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file) return fail_errno("token file " + path);
  std::string token(kMaxToken, '\0');
  ssize_t got = ::read(file.get(), token.data(), token.size());
  if (got < 0) return fail_errno("token file " + path);
  token.resize(static_cast<size_t>(got));
  while (!token.empty() && (token.back() == '\n' || token.back() == '\r' || token.back() == ' '))
    token.pop_back();
  if (token.empty()) return fail("token file " + path + " is empty");
  for (unsigned char c : token) {
    if (c <= 0x20 || c >= 0x7f) return fail("token file " + path + " holds bytes that no token has");
  }
  return token;
}

}  // namespace

Result<Issued> read_response(std::string_view body, std::string_view key_pem, const std::string& uri) {
  istio::v1::auth::IstioCertificateResponse response;
  if (!response.ParseFromArray(body.data(), static_cast<int>(body.size()))) {
    return fail("certificate authority: the answer is not an IstioCertificateResponse");
  }
  if (response.cert_chain_size() < 2 || response.cert_chain_size() > kMaxChain) {
    return fail(
        fmt::format("certificate authority: cert_chain has {} elements; leaf first and roots last are needed",
                    response.cert_chain_size()));
  }
  std::string chain;
  for (int i = 0; i + 1 < response.cert_chain_size(); ++i) chain.append(response.cert_chain(i)).append("\n");
  auto credential = tls::Credential::from_pem(key_pem, chain);
  if (!credential) return fail("certificate authority: " + credential.error().message);
  if ((*credential)->uri() != uri) {
    return fail(fmt::format("certificate authority: asked for {}, got {}", uri, (*credential)->uri()));
  }
  return Issued{std::move(*credential), response.cert_chain(response.cert_chain_size() - 1)};
}

CaClient::CaClient(io::Reactor& reactor, Settings settings)
    : reactor_(reactor), settings_(std::move(settings)), client_(reactor, settings_.target) {}

CaClient::~CaClient() = default;

void CaClient::request(const std::string& uri, seconds lifetime, Done done) {
  auto made = make_csr(uri);
  http::GrpcClient::Call call{.path = kMethod, .timeout = settings_.timeout};
  Result<> ready;
  if (!made) ready = std::unexpected(made.error());
  if (!settings_.token_file.empty()) {
    auto token = read_token(settings_.token_file);
    if (!token) ready = std::unexpected(token.error());
    if (token) call.metadata.emplace_back("authorization", "Bearer " + *token);
  }
  if (!settings_.cluster_id.empty()) call.metadata.emplace_back("clusterid", settings_.cluster_id);
  if (!ready) {
    return reactor_.post([error = ready.error(), done = std::move(done)]() mutable {
      done(std::unexpected(std::move(error)));
    });
  }

  istio::v1::auth::IstioCertificateRequest request;
  request.set_csr(made->csr_pem);
  request.set_validity_duration(lifetime.count());
  (*request.mutable_metadata()->mutable_fields())["ImpersonatedIdentity"].set_string_value(uri);
  call.message = request.SerializeAsString();
  client_.call(std::move(call),
               [uri, key = std::move(made->key_pem), done = std::move(done)](http::GrpcReply reply) mutable {
                 if (reply.code == http::GrpcCode::ok) return done(read_response(reply.message, key, uri));
                 done(fail(Reason::NO_IDENTITY, fmt::format("certificate authority refused {}: code {}, {}",
                                                            uri, static_cast<int>(reply.code), reply.error)));
               });
}

}  // namespace nodemesh::identity
