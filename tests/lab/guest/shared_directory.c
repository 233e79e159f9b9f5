// SPDX-License-Identifier: Apache-2.0
/*
 * A small test of a file system, in the directory argv[1]: says "ok" or "FAILED" for each thing
 * that programs rely on.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define FILES 100
#define WRITERS 4
#define MAPPED (1 << 20)

static char buffer[100000], other[100000];

#define CHECK(what)                                                                        \
	do {                                                                               \
		if (!(what)) {                                                             \
			printf("FAILED line %d: %s (%s)\n", __LINE__, #what,               \
			       strerror(errno));                                           \
			return 0;                                                          \
		}                                                                          \
	} while (0)

static int is_gone(const char *name)
{
	struct stat st;

	return lstat(name, &st) < 0 && errno == ENOENT;
}

static int test_rename(void)
{
	int fd = open("a", O_CREAT | O_EXCL | O_RDWR, 0640);
	struct stat st;

	CHECK(fd >= 0);
	CHECK(open("a", O_CREAT | O_EXCL | O_RDWR, 0640) < 0 && errno == EEXIST);
	CHECK(write(fd, buffer, sizeof(buffer)) == sizeof(buffer));
	CHECK(!fsync(fd));
	CHECK(!rename("a", "b") && is_gone("a"));
	CHECK(!stat("b", &st) && st.st_size == sizeof(buffer) && (st.st_mode & 0777) == 0640);
	CHECK(pread(fd, other, sizeof(other), 0) == sizeof(other));
	CHECK(!memcmp(buffer, other, sizeof(buffer)));
	CHECK(!mkdir("directory", 0755) && !rename("b", "directory/b") && is_gone("b"));
	CHECK(rmdir("directory") < 0 && errno == ENOTEMPTY);
	CHECK(!rename("directory/b", "b") && !rmdir("directory"));
	return !close(fd);
}

static int test_hard_link(void)
{
	struct stat one, two;
	int fd;

	CHECK(!link("b", "c"));
	CHECK(!stat("b", &one) && !stat("c", &two));
	CHECK(one.st_ino == two.st_ino && one.st_nlink == 2 && two.st_nlink == 2);
	CHECK(!unlink("b") && is_gone("b"));
	fd = open("c", O_RDONLY);
	CHECK(fd >= 0 && read(fd, other, sizeof(other)) == sizeof(other));
	CHECK(!memcmp(buffer, other, sizeof(buffer)));
	return !close(fd);
}

static int test_symbolic_link(void)
{
	char target[64] = "";

	CHECK(!symlink("c", "s"));
	CHECK(readlink("s", target, sizeof(target)) == 1 && target[0] == 'c');
	return !unlink("s");
}

static int test_mmap(void)
{
	int fd = open("mapped", O_CREAT | O_RDWR, 0644);
	uint32_t *map, *copy = malloc(MAPPED);

	CHECK(fd >= 0 && copy && !ftruncate(fd, MAPPED));
	map = mmap(NULL, MAPPED, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(map != MAP_FAILED);
	for (uint32_t at = 0; at < MAPPED / 4; at++)
		map[at] = at * 2654435761u;
	CHECK(!msync(map, MAPPED, MS_SYNC));
	CHECK(pread(fd, copy, MAPPED, 0) == MAPPED && !memcmp(copy, map, MAPPED));
	CHECK(pwrite(fd, buffer, 5000, 12345) == 5000);
	CHECK(!memcmp((char *)map + 12345, buffer, 5000)); /* one file, one content */
	CHECK(!munmap(map, MAPPED));
	free(copy);
	return !close(fd);
}

static int test_unlinked_while_open(void)
{
	int fd = open("unlinked", O_CREAT | O_RDWR, 0600);
	struct stat st;

	CHECK(fd >= 0 && write(fd, "hello", 5) == 5 && !unlink("unlinked"));
	CHECK(is_gone("unlinked") && !fstat(fd, &st) && st.st_size == 5);
	CHECK(pread(fd, other, 5, 0) == 5 && !memcmp(other, "hello", 5));
	return !close(fd);
}

static int test_append(void)
{
	struct stat st;
	int status;

	for (int writer = 0; writer < WRITERS; writer++) {
		if (fork())
			continue;
		int fd = open("log", O_CREAT | O_APPEND | O_WRONLY, 0644);

		for (int line = 0; line < 50; line++)
			if (write(fd, "0123456789abcde\n", 16) != 16)
				_exit(1);
		_exit(0);
	}
	for (int writer = 0; writer < WRITERS; writer++)
		CHECK(wait(&status) > 0 && !status);
	CHECK(!stat("log", &st) && st.st_size == WRITERS * 50 * 16);
	return 1;
}

static int test_many_files(void)
{
	char name[64], text[64];
	struct dirent *entry;
	int count = 0, fd;
	DIR *directory;

	CHECK(!mkdir("many", 0755));
	for (int number = 0; number < FILES; number++) {
		snprintf(name, sizeof(name), "many/%d", number);
		fd = open(name, O_CREAT | O_WRONLY, 0644);
		CHECK(fd >= 0 && dprintf(fd, "%d\n", number) > 0 && !close(fd));
	}
	directory = opendir("many");
	CHECK(directory);
	while ((entry = readdir(directory)))
		count += entry->d_name[0] != '.';
	CHECK(count == FILES && !closedir(directory));
	for (int number = 0; number < FILES; number++) {
		snprintf(name, sizeof(name), "many/%d", number);
		fd = open(name, O_RDONLY);
		CHECK(fd >= 0 && read(fd, text, sizeof(text)) > 0 && atoi(text) == number);
		CHECK(!close(fd));
	}
	return 1;
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		int (*run)(void);
	} tests[] = {
		{ "rename", test_rename },
		{ "hard link", test_hard_link },
		{ "symbolic link", test_symbolic_link },
		{ "mmap", test_mmap },
		{ "unlinked while open", test_unlinked_while_open },
		{ "append", test_append },
		{ "many files", test_many_files },
	};
	int failed = 0;

	if (argc != 2 || chdir(argv[1]) < 0)
		return 2;
	setvbuf(stdout, NULL, _IONBF, 0);
	for (size_t at = 0; at < sizeof(buffer); at++)
		buffer[at] = (char)(at * 7 + at / 256);
	for (size_t at = 0; at < sizeof(tests) / sizeof(tests[0]); at++) {
		if (tests[at].run())
			printf("ok %s\n", tests[at].name);
		else
			failed = 1;
	}
	return failed;
}
