// A string that many values share, as a namespace or a node's name: copying one costs a reference count, and
// 50,000 pods hold each only once where whoever makes them copies instead of writing it anew. A pointer in
// size. Compares by content. Immutable; any thread.
#pragma once

#include <atomic>
#include <compare>
#include <cstdint>
#include <ostream>
#include <string>
#include <string_view>
#include <utility>

namespace nodemesh {

class Text {
 public:
  Text() = default;
  Text(std::string text) : held_(text.empty() ? nullptr : new Held{.text = std::move(text)}) {}
  Text(std::string_view text) : Text(std::string(text)) {}
  Text(const char* text) : Text(std::string(text)) {}
  Text(const Text& other) : held_(other.held_) {
    if (held_) held_->holders.fetch_add(1, std::memory_order_relaxed);
  }
  Text(Text&& other) noexcept : held_(std::exchange(other.held_, nullptr)) {}
  Text& operator=(Text other) noexcept {
    std::swap(held_, other.held_);
    return *this;
  }
  ~Text() {
    if (held_ && held_->holders.fetch_sub(1, std::memory_order_acq_rel) == 1) delete held_;
  }

  const std::string& str() const {
    static const std::string kEmpty;
    return held_ ? held_->text : kEmpty;
  }
  operator const std::string&() const { return str(); }
  operator std::string_view() const { return str(); }
  bool empty() const { return held_ == nullptr; }
  size_t size() const { return str().size(); }
  // Where `other` says the same, the one string is let go and the other shared.
  void share(const Text& other) {
    if (str() == other.str()) *this = other;
  }
  // Nobody else holds the string now. Others can only get it from this one.
  bool alone() const { return !held_ || held_->holders.load(std::memory_order_relaxed) == 1; }

  friend bool operator==(const Text& a, const Text& b) { return a.held_ == b.held_ || a.str() == b.str(); }
  friend bool operator==(const Text& a, std::string_view b) { return a.str() == b; }
  friend bool operator==(const Text& a, const std::string& b) { return a.str() == b; }
  friend bool operator==(const Text& a, const char* b) { return a.str() == b; }
  friend std::strong_ordering operator<=>(const Text& a, const Text& b) { return a.str() <=> b.str(); }
  friend std::string operator+(const Text& a, std::string_view b) { return a.str() + std::string(b); }
  friend std::string operator+(std::string_view a, const Text& b) { return std::string(a) + b.str(); }
  friend std::ostream& operator<<(std::ostream& out, const Text& text) { return out << text.str(); }
  // For fmt and nlohmann::json.
  friend std::string_view format_as(const Text& text) { return text.str(); }
  template <class Json>
  friend void to_json(Json& out, const Text& text) {
    out = text.str();
  }

 private:
  struct Held {
    std::atomic<uint32_t> holders{1};
    const std::string text;
  };
  Held* held_ = nullptr;
};

}  // namespace nodemesh
