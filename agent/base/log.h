// One line per event to stderr, `time level component message key=value …`, or one JSON object per line.
// Levels are per component and may be changed at run time from any thread. Never used on the per-request path
// (telemetry's access log is). Values that came from outside are escaped here.
#pragma once

#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace nodemesh::log {

enum class Level : int { debug, info, warn, error, off };
enum class Component : int { app, bpf, config, identity, proxy, tls, http, warden, admin, controller, count };

struct Field {
  std::string_view key;
  std::string value;
  Field(std::string_view k, std::string_view v) : key(k), value(v) {}
  Field(std::string_view k, const char* v) : key(k), value(v) {}
  Field(std::string_view k, const std::string& v) : key(k), value(v) {}
  template <class T>
    requires std::is_arithmetic_v<T>
  Field(std::string_view k, T v) : key(k), value(std::to_string(v)) {}
};

bool enabled(Component component, Level level);
void set_level(Component component, Level level);
Level level(Component component);
void set_json(bool json);
// Writes are to `fd` (default 2); a log line is one write(2) and never blocks longer than that.
void set_fd(int fd);
std::optional<Component> parse_component(std::string_view name);
std::optional<Level> parse_level(std::string_view name);
std::string_view name(Component component);
std::string_view name(Level level);

void write(Component component, Level level, std::string_view message,
           std::initializer_list<Field> fields = {});

inline void debug(Component c, std::string_view m, std::initializer_list<Field> f = {}) {
  if (enabled(c, Level::debug)) write(c, Level::debug, m, f);
}
inline void info(Component c, std::string_view m, std::initializer_list<Field> f = {}) {
  write(c, Level::info, m, f);
}
inline void warn(Component c, std::string_view m, std::initializer_list<Field> f = {}) {
  write(c, Level::warn, m, f);
}
inline void error(Component c, std::string_view m, std::initializer_list<Field> f = {}) {
  write(c, Level::error, m, f);
}

// Quotes `text` when it holds anything but printable ASCII without spaces, quotes, `=` and backslashes.
std::string escape(std::string_view text);
std::string json_string(std::string_view text);

}  // namespace nodemesh::log
