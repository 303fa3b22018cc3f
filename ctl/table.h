// Text tables: columns as wide as their widest cell, two spaces between, no trailing space. Pure.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace nodemesh::ctl {

enum class Style { plain, good, bad, doubtful };

struct Cell {
  std::string text;
  Style style = Style::plain;
};

class Table {
 public:
  explicit Table(std::vector<std::string> header) : header_(std::move(header)) {}
  // Missing cells are "-", extra ones are dropped. Texts are made printable.
  void add(std::vector<Cell> row);
  bool empty() const { return rows_.empty(); }
  std::string render(bool colour) const;

 private:
  std::vector<std::string> header_;
  std::vector<std::vector<Cell>> rows_;
};

// 1536 → "1.5KiB"
std::string human_bytes(uint64_t bytes);
// 93784 s → "1d2h"
std::string human_seconds(int64_t seconds);

}  // namespace nodemesh::ctl
