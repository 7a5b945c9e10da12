# SPDX-License-Identifier: MIT
# Compiler and linker options of everything that is ours.
add_compile_options(-Wall -Wextra -Wshadow -Wconversion -Wsign-conversion -Wnon-virtual-dtor -Wold-style-cast
                    -Werror -fno-omit-frame-pointer -fstack-protector-strong)
add_compile_definitions(_GNU_SOURCE)
add_link_options(-Wl,--as-needed -Wl,-z,relro,-z,now)
if(VRAMSWAP_SANITIZE)
  add_compile_options(-fsanitize=${VRAMSWAP_SANITIZE} -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${VRAMSWAP_SANITIZE})
else()
  # One binary for any glibc distribution: the C++ runtime is linked in.
  add_link_options(-static-libstdc++ -static-libgcc)
endif()
if(VRAMSWAP_THREAD_SAFETY)
  # Warnings are all that is wanted: no code is generated, and the outputs are empty files that say what was looked at.
  add_compile_options(-Wthread-safety -Werror=thread-safety -fsyntax-only)
  list(APPEND CMAKE_CXX_COMPILE_OBJECT "touch <OBJECT>")
  set(CMAKE_CXX_CREATE_STATIC_LIBRARY "touch <TARGET>")
  set(CMAKE_CXX_LINK_EXECUTABLE "touch <TARGET>")
endif()
