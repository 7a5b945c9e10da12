# SPDX-License-Identifier: MIT
# Libraries, linked statically. CLI11 and nlohmann-json are used as headers. The GPU vendors' libraries are opened at run
# time and are not needed to build.
find_package(Threads REQUIRED)

function(vs_static_library target header archive)
  find_path(${target}_INCLUDE ${header} PATH_SUFFIXES libnl3 REQUIRED)
  find_library(${target}_ARCHIVE ${archive} REQUIRED)
  add_library(${target} INTERFACE IMPORTED GLOBAL)
  target_include_directories(${target} SYSTEM INTERFACE ${${target}_INCLUDE})
  target_link_libraries(${target} INTERFACE ${${target}_ARCHIVE})
endfunction()

vs_static_library(dep_fuse3 fuse3/fuse_lowlevel.h libfuse3.a)
target_link_libraries(dep_fuse3 INTERFACE Threads::Threads ${CMAKE_DL_LIBS})
vs_static_library(dep_xxhash xxhash.h libxxhash.a)
vs_static_library(dep_uring liburing.h liburing.a)
vs_static_library(dep_nl netlink/netlink.h libnl-3.a)
vs_static_library(dep_nl_genl netlink/genl/genl.h libnl-genl-3.a)
target_link_libraries(dep_nl_genl INTERFACE dep_nl)
# Looks for descriptions of terminals where the distributions keep them: /etc, /lib and /usr/share/terminfo.
vs_static_library(dep_tinfo term.h libtinfo.a)
vs_static_library(dep_ncursesw curses.h libncursesw.a)
target_link_libraries(dep_ncursesw INTERFACE dep_tinfo ${CMAKE_DL_LIBS})

# fmt as headers alone is compiled anew for every file that formats: half of the time of a build. Debian has it as a shared
# library, which one binary for any distribution cannot need; so its source, as far as fmt.cc knows it, is compiled here.
find_package(fmt REQUIRED)
if(fmt_VERSION VERSION_LESS 11)
  add_library(dep_fmt STATIC ${CMAKE_CURRENT_LIST_DIR}/fmt.cc)
else()
  add_library(dep_fmt INTERFACE)
  target_compile_definitions(dep_fmt INTERFACE FMT_HEADER_ONLY=1)
endif()
