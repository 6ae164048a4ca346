/* Preloaded into the command line: a call that fails or hangs, as the define says. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <pthread.h>
#include <spawn.h>
#include <stdlib.h>
#include <unistd.h>

#ifdef NO_PROCESS
pid_t fork(void) {
    errno = EAGAIN;
    return -1;
}
int posix_spawnp(pid_t *pid, const char *file, const posix_spawn_file_actions_t *actions,
                 const posix_spawnattr_t *attributes, char *const argv[], char *const envp[]) {
    return EAGAIN;
}
#endif

#ifdef NO_THREAD
int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *),
                   void *argument) {
    return EAGAIN;
}
#endif

#ifdef SILENT_RESOLVER
/* Leaves the file "asked", and never answers. */
int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints,
                struct addrinfo **found) {
    close(open("asked", O_CREAT | O_WRONLY, 0600));
    for (;;)
        pause();
}
#endif
