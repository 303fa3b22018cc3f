#include "base/log.h"

#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <ctime>

#include <fmt/format.h>

namespace nodemesh::log {
namespace {

constexpr auto kComponents = static_cast<size_t>(Component::count);
constexpr std::array<std::string_view, kComponents> kComponentNames = {
    "app", "bpf", "config", "identity", "proxy", "tls", "http", "warden", "admin", "controller"};
constexpr std::array<std::string_view, 5> kLevelNames = {"debug", "info", "warn", "error", "off"};

struct State {
  std::array<std::atomic<int>, kComponents> levels;
  std::atomic<bool> json{false};
  std::atomic<int> fd{2};
  State() {
    for (auto& level : levels) level = static_cast<int>(Level::info);
  }
};

State& state() {
  static State instance;
  return instance;
}

std::string timestamp() {
  auto now = std::chrono::system_clock::now();
  auto micros =
      std::chrono::duration_cast<std::chrono::microseconds>(now.time_since_epoch()).count() % 1'000'000;
  std::time_t secs = std::chrono::system_clock::to_time_t(now);
  std::tm parts{};
  gmtime_r(&secs, &parts);
  return fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}Z", parts.tm_year + 1900, parts.tm_mon + 1,
                     parts.tm_mday, parts.tm_hour, parts.tm_min, parts.tm_sec, micros);
}

}  // namespace

bool enabled(Component component, Level wanted) {
  return static_cast<int>(wanted) >=
         state().levels[static_cast<size_t>(component)].load(std::memory_order_relaxed);
}
void set_level(Component component, Level wanted) {
  state().levels[static_cast<size_t>(component)] = static_cast<int>(wanted);
}
Level level(Component component) {
  return static_cast<Level>(state().levels[static_cast<size_t>(component)].load());
}
void set_json(bool json) {
  state().json = json;
}
void set_fd(int fd) {
  state().fd = fd;
}

std::optional<Component> parse_component(std::string_view text) {
  for (size_t i = 0; i < kComponents; ++i) {
    if (kComponentNames[i] == text) return static_cast<Component>(i);
  }
  return std::nullopt;
}
std::optional<Level> parse_level(std::string_view text) {
  for (size_t i = 0; i < kLevelNames.size(); ++i) {
    if (kLevelNames[i] == text) return static_cast<Level>(i);
  }
  return std::nullopt;
}
std::string_view name(Component component) {
  return kComponentNames[static_cast<size_t>(component)];
}
std::string_view name(Level wanted) {
  return kLevelNames[static_cast<size_t>(wanted)];
}

std::string json_string(std::string_view text) {
  std::string out = "\"";
  for (unsigned char c : text) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\t':
        out += "\\t";
        break;
      default:
        if (c < 0x20 || c >= 0x7f) {
          out += fmt::format("\\u{:04x}", c);
        } else {
          out += static_cast<char>(c);
        }
    }
  }
  return out + '"';
}

std::string escape(std::string_view text) {
  bool plain = !text.empty();
  for (unsigned char c : text) {
    if (c <= 0x20 || c >= 0x7f || c == '"' || c == '=' || c == '\\') plain = false;
  }
  return plain ? std::string(text) : json_string(text);
}

void write(Component component, Level wanted, std::string_view message, std::initializer_list<Field> fields) {
  if (!enabled(component, wanted)) return;
  std::string line;
  if (state().json) {
    line = fmt::format(R"({{"time":"{}","level":"{}","component":"{}","message":{})", timestamp(),
                       name(wanted), name(component), json_string(message));
    for (const auto& field : fields)
      line += fmt::format(",{}:{}", json_string(field.key), json_string(field.value));
    line += "}\n";
  } else {
    std::string text;
    for (unsigned char c : message)
      text += (c < 0x20 || c >= 0x7f) ? fmt::format("\\x{:02x}", c) : std::string(1, static_cast<char>(c));
    line = fmt::format("{} {} {} {}", timestamp(), name(wanted), name(component), text);
    for (const auto& field : fields) line += fmt::format(" {}={}", field.key, escape(field.value));
    line += '\n';
  }
  // A log that cannot be written must never stop the agent: nothing useful can be done with this failure.
  [[maybe_unused]] auto written = ::write(state().fd, line.data(), line.size());
}

}  // namespace nodemesh::log
