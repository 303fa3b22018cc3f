// The Prometheus text exposition (format 0.0.4) of the process's metrics. Runs on the thread that answers a
// scrape; holds the registry's lock only to copy what it will print. Formats values without streams or fmt: a
// scrape of ten thousand series must not be felt by the workers that share the machine.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "telemetry/labels.h"

namespace nodemesh::telemetry {

class Metrics;
class Counter;
struct LabelSet;
struct TcpSeries;

// The label part `{reporter="source",…}` of a TCP series.
std::string tcp_label_text(const TcpLabels& labels);
// A label value as the format wants it: backslash, quote and newline escaped, and every byte that is not
// valid UTF-8 replaced by '?', since Prometheus refuses a whole scrape over one.
void append_label_value(std::string& out, std::string_view value);

class Exposition {
 public:
  explicit Exposition(const Metrics& metrics) : metrics_(metrics) {}
  std::string render();

 private:
  using Labels = std::initializer_list<std::pair<std::string_view, std::string_view>>;
  void head(std::string_view metric, std::string_view type, std::string_view help);
  void sample(std::string_view metric, Labels labels, int64_t value);
  void sample(std::string_view metric, Labels labels, double value);
  void tcp();
  void tcp_family(std::string_view metric, std::string_view help, const Counter TcpSeries::* counter,
                  bool if_nonzero);
  void sockets_open();
  void connections();
  void handshakes();
  void handshake_seconds();
  void tunnels();
  void configuration();
  void config_source();
  void kernel();
  void policy();
  void process();

  const Metrics& metrics_;
  std::vector<std::shared_ptr<LabelSet>> sets_;
  std::string out_;
};

}  // namespace nodemesh::telemetry
