# SPDX-License-Identifier: MIT
# Compiler and linker options of everything that is ours.
add_compile_options(-Wall -Wextra -Wshadow -Wconversion -Wsign-conversion -Wnon-virtual-dtor -Wold-style-cast
                    -Werror -fno-omit-frame-pointer -fstack-protector-strong)
add_compile_definitions(FMT_HEADER_ONLY=1 _GNU_SOURCE)
add_link_options(-Wl,--as-needed -Wl,-z,relro,-z,now)
if(VRAMSWAP_SANITIZE)
  add_compile_options(-fsanitize=${VRAMSWAP_SANITIZE} -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${VRAMSWAP_SANITIZE})
else()
  # One binary for any glibc distribution: the C++ runtime is linked in.
  add_link_options(-static-libstdc++ -static-libgcc)
endif()
if(VRAMSWAP_THREAD_SAFETY)
  add_compile_options(-Wthread-safety -Werror=thread-safety)
endif()
