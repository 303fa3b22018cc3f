#include "tls/stream.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace nodemesh::tls {

// The BIO through which OpenSSL meets the shared buffers.
struct StreamBio {
  static int write(BIO* bio, const char* data, int size) {
    static_cast<Stream*>(BIO_get_data(bio))
        ->queue({reinterpret_cast<const uint8_t*>(data), static_cast<size_t>(size)});
    return size;
  }
  static int read(BIO* bio, char* out, int size) {
    auto& stream = *static_cast<Stream*>(BIO_get_data(bio));
    BIO_clear_retry_flags(bio);
    if (stream.cipher_size_ == 0 && !stream.receive()) {
      if (stream.peer_closed_) return 0;
      BIO_set_retry_read(bio);
      return -1;
    }
    size_t count = std::min(static_cast<size_t>(size), stream.cipher_size_);
    std::memcpy(out, stream.cipher_, count);
    stream.cipher_ += count;
    stream.cipher_size_ -= count;
    return static_cast<int>(count);
  }
  static long ctrl(BIO* bio, int command, long, void*) {
    if (command == BIO_CTRL_EOF) return static_cast<Stream*>(BIO_get_data(bio))->peer_closed_ ? 1 : 0;
    return command == BIO_CTRL_FLUSH ? 1 : 0;
  }
  static const BIO_METHOD* method() {
    static BIO_METHOD* const kMethod = [] {
      BIO_METHOD* made = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "nodemesh stream");
      BIO_meth_set_write(made, write);
      BIO_meth_set_read(made, read);
      BIO_meth_set_ctrl(made, ctrl);
      return made;
    }();
    return kMethod;
  }
};

Stream::Stream(SslPtr ssl, Fd fd, io::Buffers& buffers)
    : ssl_(std::move(ssl)), fd_(std::move(fd)), buffers_(buffers) {
  BIO* bio = BIO_new(StreamBio::method());
  BIO_set_data(bio, this);
  BIO_set_init(bio, 1);
  SSL_set_bio(ssl_.get(), bio, bio);
}

Stream::~Stream() = default;

bool Stream::receive() {
  if (socket_empty_ || peer_closed_ || broken_ || !may_receive_) return false;
  ssize_t count = ::recv(fd_.get(), buffers_.cipher.get(), io::Buffers::kCipher, 0);
  if (count > 0) {
    // A short read empties the socket: with edge-triggered events the next byte brings the next event.
    socket_empty_ = static_cast<size_t>(count) < io::Buffers::kCipher && !read_to_end_;
    cipher_ = buffers_.cipher.get();
    cipher_size_ = static_cast<size_t>(count);
    received_ += static_cast<uint64_t>(count);
    return true;
  }
  socket_empty_ = true;
  if (count == 0) {
    peer_closed_ = true;
  } else if (errno != EAGAIN && errno != EINTR) {
    peer_closed_ = broken_ = true;
  }
  return false;
}

Stream::State Stream::handshake() {
  ERR_clear_error();
  int result = SSL_do_handshake(ssl_.get());
  if (result == 1) return State::ok;
  switch (SSL_get_error(ssl_.get(), result)) {
    case SSL_ERROR_WANT_READ:
    case SSL_ERROR_WANT_WRITE:
      return State::want;
    case SSL_ERROR_SYSCALL:
    case SSL_ERROR_ZERO_RETURN:
      return State::closed;
    default:
      return peer_closed_ ? State::closed : State::failed;
  }
}

Stream::Read Stream::read() {
  uint8_t* out = buffers_.plain.get();
  size_t filled = 0;
  ERR_clear_error();
  // Records behind the last one of the handshake lie undecrypted in the buffer that a recv would overwrite.
  if (cipher_size_ == 0) receive();
  may_receive_ = false;
  State state = State::ok;
  while (state == State::ok) {
    size_t count = 0;
    int result = SSL_read_ex(ssl_.get(), out + filled, io::Buffers::kPlain - filled, &count);
    if (result == 1) {
      filled += count;
      continue;
    }
    switch (SSL_get_error(ssl_.get(), result)) {
      case SSL_ERROR_WANT_READ:
      case SSL_ERROR_WANT_WRITE:
        state = State::want;
        break;
      case SSL_ERROR_ZERO_RETURN:
        state = State::closed;
        break;
      default:
        state = peer_closed_ && !broken_ ? State::closed : State::failed;
    }
  }
  may_receive_ = true;
  // An alert that OpenSSL raised by itself may not wait in the shared buffer while other connections run.
  if (sealed_ > 0) flush();
  return {{out, filled}, state, socket_empty_ || peer_closed_};
}

bool Stream::seal(std::span<const uint8_t> bytes) {
  ERR_clear_error();
  while (!bytes.empty() && !broken_) {
    size_t written = 0;  // at least a record, with partial writes enabled not more than that
    if (SSL_write_ex(ssl_.get(), bytes.data(), bytes.size(), &written) != 1) broken_ = true;
    bytes = bytes.subspan(written);
  }
  return !broken_;
}

void Stream::queue(std::span<const uint8_t> bytes) {
  if (overflow_ == nullptr && sealed_ + bytes.size() <= io::Buffers::kSealed) {
    std::memcpy(buffers_.sealed.get() + sealed_, bytes.data(), bytes.size());
    sealed_ += bytes.size();
    return;
  }
  if (overflow_ == nullptr) {
    overflow_ =
        std::make_unique<std::vector<uint8_t>>(buffers_.sealed.get(), buffers_.sealed.get() + sealed_);
    overflow_sent_ = sealed_ = 0;
  }
  overflow_->insert(overflow_->end(), bytes.begin(), bytes.end());
  held_.set(overflow_->capacity());
}

void Stream::drop_unsent() {
  overflow_.reset();
  overflow_sent_ = sealed_ = 0;
  held_.charge_to(nullptr);
  held_.set(0);
}

bool Stream::flush() {
  if (broken_) return false;
  const uint8_t* data = overflow_ ? overflow_->data() + overflow_sent_ : buffers_.sealed.get();
  size_t size = overflow_ ? overflow_->size() - overflow_sent_ : sealed_;
  size_t done = 0;
  while (done < size) {
    ssize_t count = ::send(fd_.get(), data + done, size - done, MSG_NOSIGNAL);
    if (count < 0) {
      if (errno == EINTR) continue;
      if (errno != EAGAIN) broken_ = true;
      break;
    }
    done += static_cast<size_t>(count);
    sent_ += static_cast<uint64_t>(count);
  }
  if (done == size) {
    overflow_.reset();
    overflow_sent_ = sealed_ = 0;
  } else if (overflow_ != nullptr) {
    overflow_sent_ += done;
  } else {
    overflow_ = std::make_unique<std::vector<uint8_t>>(data + done, data + size);
    overflow_sent_ = sealed_ = 0;
  }
  held_.set(overflow_ ? overflow_->capacity() : 0);
  return !broken_;
}

void Stream::close_notify() {
  if (!broken_ && SSL_is_init_finished(ssl_.get())) SSL_shutdown(ssl_.get());
}

std::string Stream::last_error() const {
  unsigned long code = ERR_peek_last_error();
  if (code == 0) return peer_closed_ ? "the peer closed the connection" : "unknown TLS error";
  char text[160];
  ERR_error_string_n(code, text, sizeof text);
  return text;
}

}  // namespace nodemesh::tls
