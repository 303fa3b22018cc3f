// What `meshctl enroll` and `unenroll` decide: which label of which object changes, and whether the agents
// have followed. Pure: objects of the API server in, decisions out.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "base/reason.h"

namespace nodemesh::ctl {

constexpr const char* kModeLabel = "istio.io/dataplane-mode";

// A namespace, or a workload of one.
struct EnrolmentObject {
  std::string kind;  // "namespace", "deployment", "statefulset", "daemonset", "pod"
  std::string name;
  std::string ns;  // of a workload

  std::string text() const;  // "deployment shop/web"
  std::string path() const;  // at the API server
  bool has_template() const { return kind != "namespace" && kind != "pod"; }
};

// From the words of the command line: {"namespace", "shop"}, {"ns/shop"}, {"deployment/web"}. `ns` is for
// workloads.
Result<EnrolmentObject> parse_enrolment_object(const std::vector<std::string>& words, const std::string& ns);

// What the object says for itself, and what its pods get: the namespace's word where it says nothing.
struct Mode {
  std::string own, from_namespace;
  bool enrolled() const { return own == "ambient" || (own != "none" && from_namespace == "ambient"); }
};
// `object` as the API server has it; `ns` the Namespace, null for a namespace itself.
Mode mode_of(const EnrolmentObject& what, const nlohmann::json& object, const nlohmann::json& ns);

// The label's new value, "" to remove it; nullopt where everything is as it should be. A workload leaves an
// enrolled namespace by `none`.
std::optional<std::string> wanted_label(const Mode& mode, bool enrol);
// As application/merge-patch+json (RFC 7386), which touches that label alone.
nlohmann::json label_patch(const EnrolmentObject& what, const std::string& value);

// What the agents say of the pods that their proxies listen for.
struct Captured {
  std::set<std::string> pods;                      // "namespace/name"
  std::map<std::string, std::string> silent = {};  // nodes of whose agent nothing is known, and why
};

// How far the agents are.
struct Progress {
  size_t done = 0, of = 0;
  std::string reason;  // what is waited for, of the first pod that is not there yet
  bool complete() const { return reason.empty(); }
};
// `pods` are the object's. Those that end and those that have ended do not count; nor, in a namespace, those
// that say otherwise for themselves or are on the host's network.
Progress enrolment_progress(const EnrolmentObject& what, bool enrol, const std::string& namespace_mode,
                            const std::vector<nlohmann::json>& pods, const Captured& captured);
// "app=web,tier in (a,b)" of a metav1.LabelSelector.
std::string selector_text(const nlohmann::json& selector);

}  // namespace nodemesh::ctl
