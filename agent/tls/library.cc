#include "tls/library.h"

#include <openssl/core_dispatch.h>
#include <openssl/core_names.h>

#include <algorithm>
#include <array>
#include <string_view>
#include <vector>

#include "tls/openssl.h"

namespace nodemesh::tls {
namespace {

// OpenSSL's default provider and, by operation, the part of its algorithm tables that we show. A constant
// once built: OpenSSL asks for the tables without saying which context asks, and may do so on any thread.
struct Shown {
  OSSL_PROVIDER* base = OSSL_PROVIDER_load(nullptr, "default");
  std::array<std::vector<OSSL_ALGORITHM>, OSSL_OP__HIGHEST + 1> tables;

  Shown() {
    for (int operation = 1; base != nullptr && operation <= OSSL_OP__HIGHEST; ++operation) {
      int no_cache = 0;
      const OSSL_ALGORITHM* all = OSSL_PROVIDER_query_operation(base, operation, &no_cache);
      for (; all != nullptr && all->algorithm_names != nullptr; ++all) {
        if (needed(operation, *all)) tables[static_cast<size_t>(operation)].push_back(*all);
      }
      tables[static_cast<size_t>(operation)].push_back({});
    }
  }

  static bool needed(int operation, const OSSL_ALGORITHM& algorithm) {
    std::string_view names = algorithm.algorithm_names;  // "EC:id-ecPublicKey:1.2.840.10045.2.1"
    std::string_view name = names.substr(0, names.find(':'));
    std::string_view properties =
        algorithm.property_definition != nullptr ? algorithm.property_definition : "";
    auto has = [&](std::string_view text) { return properties.find(text) != std::string_view::npos; };
    auto any = [&](std::initializer_list<std::string_view> list) {
      return std::ranges::find(list, name) != list.end();
    };
    switch (operation) {
      case OSSL_OP_DIGEST:
        return any({"SHA2-256", "SHA2-384", "SHA2-512"});
      case OSSL_OP_CIPHER:
        return any({"AES-128-GCM", "AES-256-GCM", "AES-256-CBC", "AES-256-CTR"});
      case OSSL_OP_MAC:
        return any({"HMAC"});
      case OSSL_OP_KDF:
        return any({"HKDF", "TLS13-KDF"});
      case OSSL_OP_KEYMGMT:
        // RSA-PSS: without it TLS would not offer its signatures, not even by ordinary RSA keys.
        return any({"EC", "RSA", "RSA-PSS", "X25519", "HMAC"});
      case OSSL_OP_KEYEXCH:
        return any({"ECDH", "X25519"});
      case OSSL_OP_SIGNATURE:
        return any({"ECDSA", "RSA", "HMAC"});
      case OSSL_OP_DECODER:
        return any({"EC", "RSA"}) && has("input=der") && has("SubjectPublicKeyInfo");
      case OSSL_OP_RAND:
        return true;
      default:
        return false;
    }
  }
};

const Shown& shown() {
  static const Shown instance;
  return instance;
}

const OSSL_ALGORITHM* query(void*, int operation, int* no_cache) {
  *no_cache = 0;
  return operation >= 1 && operation <= OSSL_OP__HIGHEST
             ? shown().tables[static_cast<size_t>(operation)].data()
             : nullptr;
}

// TLS asks here for the groups.
int capabilities(void*, const char* capability, OSSL_CALLBACK* callback, void* argument) {
  return OSSL_PROVIDER_get_capabilities(shown().base, capability, callback, argument);
}

void teardown(void*) {}  // what we show belongs to the default provider

template <class Function>
OSSL_DISPATCH entry(int id, Function* function) {
  return {id, reinterpret_cast<void (*)()>(function)};
}

int start(const OSSL_CORE_HANDLE*, const OSSL_DISPATCH*, const OSSL_DISPATCH** functions, void** context) {
  static const OSSL_DISPATCH table[] = {entry(OSSL_FUNC_PROVIDER_QUERY_OPERATION, query),
                                        entry(OSSL_FUNC_PROVIDER_GET_CAPABILITIES, capabilities),
                                        entry(OSSL_FUNC_PROVIDER_TEARDOWN, teardown),
                                        {0, nullptr}};
  *functions = table;
  *context = OSSL_PROVIDER_get0_provider_ctx(shown().base);
  return 1;
}

}  // namespace

Result<std::unique_ptr<Library>> Library::create() {
  std::unique_ptr<Library> out(new Library);
  out->context_ = shown().base != nullptr ? OSSL_LIB_CTX_new() : nullptr;
  if (out->context_ == nullptr || OSSL_PROVIDER_add_builtin(out->context_, "nodemesh", start) != 1) {
    return fail("TLS: OpenSSL's default provider cannot be used: " + take_openssl_error());
  }
  out->provider_ = OSSL_PROVIDER_load(out->context_, "nodemesh");
  if (out->provider_ == nullptr)
    return fail("TLS: OpenSSL's default provider cannot be used: " + take_openssl_error());
  return out;
}

Library::~Library() {
  if (provider_ != nullptr) OSSL_PROVIDER_unload(provider_);
  OSSL_LIB_CTX_free(context_);
}

}  // namespace nodemesh::tls
