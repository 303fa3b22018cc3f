// What checks share in reading objects and in naming them. Pure.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include <nlohmann/json_fwd.hpp>

namespace nodemesh::ctl {

// "Pod shop/web", "Node a".
std::string name_of(const nlohmann::json& object);
std::string ns_of(const nlohmann::json& object);
// "v1.30.4-eks-1" → {1, 30}; "6.1.0-13-amd64" → {6, 1}.
std::optional<std::pair<int, int>> version_in(std::string_view text);
// Seconds since 1970 of an RFC 3339 time, with its fraction.
std::optional<double> time_in(std::string_view text);
// metav1.LabelSelector against an object's labels; one that is absent selects nothing, an empty one all.
bool selected_by(const nlohmann::json& selector, const std::map<std::string, std::string>& labels);
std::map<std::string, std::string> labels_of(const nlohmann::json& object);
// The value of `flag` in the args of any container of a workload's template: "" where it is absent.
std::string flag_of_agent(const nlohmann::json& workload, std::string_view flag);
bool has_flag(const nlohmann::json& workload, std::string_view flag);
// A condition's status: "True", "False", "Unknown", or "" where it is absent.
std::string condition_of(const nlohmann::json& object, std::string_view type);
bool is_ready_pod(const nlohmann::json& pod);
bool is_finished_pod(const nlohmann::json& pod);
// Why a pod is not ready, as far as its status says: "container proxy: CrashLoopBackOff", "0/3 nodes …".
std::string why_not_ready(const nlohmann::json& pod);
// A memory quantity in bytes ("64Mi", "1G", "1500k"); nullopt for what is none.
std::optional<double> bytes_in(std::string_view quantity);

}  // namespace nodemesh::ctl
