#include "ctl/enrolment.h"

#include <algorithm>
#include <array>

#include <fmt/format.h>

#include "ctl/views.h"
#include "kube/api_client.h"

namespace nodemesh::ctl {
namespace {

// A key with a slash in a JSON pointer (RFC 6901 3).
constexpr const char* kOwnMode = "/metadata/labels/istio.io~1dataplane-mode";
constexpr const char* kTemplateMode = "/spec/template/metadata/labels/istio.io~1dataplane-mode";

struct KindName {
  std::string_view typed, kind;
};
constexpr std::array<KindName, 17> kKinds{{{"namespace", "namespace"},
                                           {"namespaces", "namespace"},
                                           {"ns", "namespace"},
                                           {"deployment", "deployment"},
                                           {"deployments", "deployment"},
                                           {"deploy", "deployment"},
                                           {"deployment.apps", "deployment"},
                                           {"statefulset", "statefulset"},
                                           {"statefulsets", "statefulset"},
                                           {"sts", "statefulset"},
                                           {"statefulset.apps", "statefulset"},
                                           {"daemonset", "daemonset"},
                                           {"daemonsets", "daemonset"},
                                           {"ds", "daemonset"},
                                           {"pod", "pod"},
                                           {"pods", "pod"},
                                           {"po", "pod"}}};

bool has_ended(const nlohmann::json& pod) {
  auto phase = text_at(pod, "/status/phase");
  return phase == "Succeeded" || phase == "Failed" || !text_at(pod, "/metadata/deletionTimestamp").empty();
}

// Why this pod is not as it should be; empty where it is.
std::string missing(const nlohmann::json& pod, bool enrol, const Captured& captured) {
  auto name = text_at(pod, "/metadata/namespace") + "/" + text_at(pod, "/metadata/name");
  auto node = text_at(pod, "/spec/nodeName");
  bool seen = captured.pods.contains(name);
  if (auto silent = captured.silent.find(node); silent != captured.silent.end())
    return fmt::format("whether the agent of {} listens for pod {} is not known: {}", node, name,
                       silent->second);
  if (!enrol) return seen ? fmt::format("the agent of {} still holds pod {}", node, name) : "";
  if (node.empty()) return "pod " + name + " has no node yet";
  if (seen) return {};
  auto phase = text_at(pod, "/status/phase");
  if (phase != "Running") return fmt::format("pod {} on {} is {}", name, node, phase);
  return fmt::format("the agent of {} does not listen for pod {} yet", node, name);
}

}  // namespace

std::string EnrolmentObject::text() const {
  return kind == "namespace" ? kind + " " + name : fmt::format("{} {}/{}", kind, ns, name);
}

std::string EnrolmentObject::path() const {
  auto object = kube::percent_encode(name), in = kube::percent_encode(ns);
  if (kind == "namespace") return "/api/v1/namespaces/" + object;
  if (kind == "pod") return fmt::format("/api/v1/namespaces/{}/pods/{}", in, object);
  return fmt::format("/apis/apps/v1/namespaces/{}/{}s/{}", in, kind, object);
}

Result<EnrolmentObject> parse_enrolment_object(const std::vector<std::string>& words, const std::string& ns) {
  std::string kind = words.empty() ? "" : words.front(), name;
  if (size_t slash = kind.find('/'); slash != kind.npos && words.size() == 1) {
    name = kind.substr(slash + 1);
    kind.resize(slash);
  } else if (words.size() == 2) {
    name = words.back();
  }
  const auto* known = std::ranges::find(kKinds, kind, &KindName::typed);
  if (known == kKinds.end() || name.empty() || name.find('/') != name.npos)
    return fail(
        "what to change must be `namespace NAME`, or a workload: deployment/NAME, statefulset/NAME, "
        "daemonset/NAME or pod/NAME");
  bool is_namespace = known->kind == "namespace";
  return EnrolmentObject{std::string(known->kind), name, is_namespace ? "" : ns};
}

Mode mode_of(const EnrolmentObject& what, const nlohmann::json& object, const nlohmann::json& ns) {
  return {text_at(object, what.has_template() ? kTemplateMode : kOwnMode), text_at(ns, kOwnMode)};
}

std::optional<std::string> wanted_label(const Mode& mode, bool enrol) {
  if (mode.enrolled() == enrol) return std::nullopt;
  if (enrol) return "ambient";
  return mode.from_namespace == "ambient" ? "none" : "";
}

nlohmann::json label_patch(const EnrolmentObject& what, const std::string& value) {
  nlohmann::json labels = {{kModeLabel, value.empty() ? nlohmann::json(nullptr) : nlohmann::json(value)}};
  nlohmann::json metadata = {{"metadata", {{"labels", labels}}}};
  return what.has_template() ? nlohmann::json{{"spec", {{"template", metadata}}}} : metadata;
}

Progress enrolment_progress(const EnrolmentObject& what, bool enrol, const std::string& namespace_mode,
                            const std::vector<nlohmann::json>& pods, const Captured& captured) {
  Progress progress;
  for (const auto& pod : pods) {
    if (has_ended(pod) || text_at(pod, "/spec/hostNetwork") == "true") continue;
    Mode mode{text_at(pod, kOwnMode), namespace_mode};
    if (mode.enrolled() != enrol && what.kind == "namespace") continue;
    ++progress.of;
    auto reason = mode.enrolled() == enrol ? missing(pod, enrol, captured)
                                           : fmt::format("pod {} is of the time before; its {} replaces it",
                                                         text_at(pod, "/metadata/name"), what.kind);
    progress.done += reason.empty();
    if (progress.reason.empty()) progress.reason = reason;
  }
  return progress;
}

std::string selector_text(const nlohmann::json& selector) {
  std::string text;
  auto add = [&](const std::string& term) { text += (text.empty() ? "" : ",") + term; };
  if (!selector.is_object()) return text;
  auto labels = selector.find("matchLabels");
  if (labels != selector.end() && labels->is_object()) {
    for (const auto& [key, value] : labels->items()) add(key + "=" + text_at(value, ""));
  }
  auto expressions = selector.find("matchExpressions");
  if (expressions == selector.end() || !expressions->is_array()) return text;
  for (const auto& one : *expressions) {
    auto key = text_at(one, "/key"), op = text_at(one, "/operator"), values = text_at(one, "/values");
    if (op == "In") add(fmt::format("{} in ({})", key, values));
    if (op == "NotIn") add(fmt::format("{} notin ({})", key, values));
    if (op == "Exists") add(key);
    if (op == "DoesNotExist") add("!" + key);
  }
  return text;
}

}  // namespace nodemesh::ctl
