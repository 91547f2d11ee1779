#include <unistd.h>

#include <iostream>

#include "client/cli/cli.h"

int main(int argc, char** argv) {
  return nibble::RunCli({argv + 1, argv + argc},
                        {.out = std::cout, .err = std::cerr, .live = isatty(STDERR_FILENO) == 1});
}
