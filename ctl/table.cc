#include "ctl/table.h"

#include <algorithm>

#include <fmt/format.h>

#include "ctl/context.h"

namespace nodemesh::ctl {
namespace {

std::string_view colour_of(Style style) {
  switch (style) {
    case Style::good:
      return "\033[32m";
    case Style::bad:
      return "\033[31m";
    case Style::doubtful:
      return "\033[33m";
    case Style::plain:
      break;
  }
  return "";
}

}  // namespace

void Table::add(std::vector<Cell> row) {
  row.resize(header_.size());
  for (auto& cell : row) cell.text = cell.text.empty() ? "-" : printable(cell.text);
  rows_.push_back(std::move(row));
}

std::string Table::render(bool colour) const {
  std::vector<size_t> widths;
  for (size_t c = 0; c < header_.size(); ++c) {
    size_t width = header_[c].size();
    for (const auto& row : rows_) width = std::max(width, row[c].text.size());
    widths.push_back(width);
  }
  std::string out;
  auto put = [&](size_t column, std::string_view text, Style style) {
    bool paint = colour && style != Style::plain;
    if (paint) out += colour_of(style);
    out += text;
    if (paint) out += "\033[0m";
    if (column + 1 < widths.size()) out.append(widths[column] - text.size() + 2, ' ');
  };
  for (size_t c = 0; c < header_.size(); ++c) put(c, header_[c], Style::plain);
  out += '\n';
  for (const auto& row : rows_) {
    for (size_t c = 0; c < row.size(); ++c) put(c, row[c].text, row[c].style);
    out += '\n';
  }
  return out;
}

std::string human_bytes(uint64_t bytes) {
  static constexpr const char* kUnits[] = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  if (bytes < 1024) return std::to_string(bytes) + "B";
  double value = static_cast<double>(bytes) / 1024;
  size_t unit = 0;
  for (; value >= 1023.95 && unit + 1 < std::size(kUnits); ++unit) value /= 1024;
  return fmt::format("{:.1f}{}", value, kUnits[unit]);
}

std::string human_seconds(int64_t seconds) {
  if (seconds < 0) return "-" + human_seconds(-seconds);
  if (seconds < 60) return fmt::format("{}s", seconds);
  if (seconds < 3600) return fmt::format("{}m{}s", seconds / 60, seconds % 60);
  if (seconds < 86400) return fmt::format("{}h{}m", seconds / 3600, seconds / 60 % 60);
  return fmt::format("{}d{}h", seconds / 86400, seconds / 3600 % 24);
}

}  // namespace nodemesh::ctl
