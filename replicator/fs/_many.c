/* The same system call for each of many names of one directory, with the interpreter lock let go once for all
 * of them. What the functions do, and what does it where there was no compiler: `many_states.py`.
 */

#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000 /* one build for each Python from 3.11 on */
#include <Python.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { STATX_WORDS = sizeof(struct statx) / sizeof(uint64_t), LISTED_BYTES = 1 << 17 };

/* Names as C strings, as long as `owner` lives. */
struct names {
    PyObject *owner;
    Py_ssize_t count;
    const char **text;
};

static void drop_names(struct names *names)
{
    Py_XDECREF(names->owner);
    PyMem_Free(names->text);
}

/* 0; or -1 with an exception: they are no sequence of bytes without NUL. */
static int take_names(PyObject *sequence, struct names *names)
{
    names->text = NULL;
    names->owner = PySequence_Tuple(sequence);
    if (names->owner == NULL)
        return -1;
    names->count = PyTuple_Size(names->owner);
    names->text = PyMem_Malloc((names->count + 1) * sizeof *names->text);
    if (names->text == NULL) {
        PyErr_NoMemory();
        goto failed;
    }
    for (Py_ssize_t index = 0; index < names->count; index++)
        if (PyBytes_AsStringAndSize(PyTuple_GetItem(names->owner, index), (char **)&names->text[index], NULL))
            goto failed;
    return 0;
failed:
    drop_names(names);
    return -1;
}

static PyObject *failure(int number, const char *name)
{
    PyObject *text = PyBytes_FromString(name);
    if (text != NULL) {
        errno = number;
        PyErr_SetFromErrnoWithFilenameObject(PyExc_OSError, text);
        Py_DECREF(text);
    }
    return NULL;
}

static PyObject *states(PyObject *module, PyObject *arguments)
{
    int directory, flags;
    unsigned int mask;
    PyObject *sequence, *result = NULL;
    Py_buffer chosen, columns;
    struct names names;

    if (!PyArg_ParseTuple(arguments, "iOiIy*w*", &directory, &sequence, &flags, &mask, &chosen, &columns))
        return NULL;
    if (take_names(sequence, &names))
        goto no_names;
    const unsigned char *words = chosen.buf;
    uint64_t *column = columns.buf;
    Py_ssize_t index = 0;
    int number = 0;
    for (Py_ssize_t place = 0; place < chosen.len; place++)
        if (words[place] >= STATX_WORDS)
            number = EINVAL;
    if (number || columns.len != chosen.len * names.count * (Py_ssize_t)sizeof *column) {
        PyErr_SetString(PyExc_ValueError, "no such words, or no room for them");
        goto done;
    }
    Py_BEGIN_ALLOW_THREADS
    for (; index < names.count; index++) {
        union {
            struct statx state;
            uint64_t words[STATX_WORDS];
        } found;
        if (statx(directory, names.text[index], flags, mask, &found.state)) {
            if (errno != ENOENT && errno != ENOTDIR) {
                number = errno;
                break;
            }
            found.state = (struct statx){0};
        }
        for (Py_ssize_t place = 0; place < chosen.len; place++)
            column[place * names.count + index] = found.words[words[place]];
    }
    Py_END_ALLOW_THREADS
    result = number ? failure(number, names.text[index]) : Py_NewRef(Py_None);
done:
    drop_names(&names);
no_names:
    PyBuffer_Release(&chosen);
    PyBuffer_Release(&columns);
    return result;
}

/* Whether it is a directory, where the file system does not say so by the way. */
static int is_directory(int directory, const struct dirent64 *entry)
{
    struct stat state;
    if (entry->d_type != DT_UNKNOWN)
        return entry->d_type == DT_DIR;
    return !fstatat(directory, entry->d_name, &state, AT_SYMLINK_NOFOLLOW) && S_ISDIR(state.st_mode);
}

static PyObject *names_in(PyObject *module, PyObject *arguments)
{
    int directory;
    PyObject *directories, *others;
    if (!PyArg_ParseTuple(arguments, "i", &directory))
        return NULL;
    char *buffer = PyMem_Malloc(LISTED_BYTES);
    directories = PyList_New(0), others = PyList_New(0);
    if (buffer == NULL)
        PyErr_NoMemory();
    if (buffer == NULL || directories == NULL || others == NULL)
        goto failed;
    if (lseek(directory, 0, SEEK_SET) < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        goto failed;
    }
    for (;;) {
        ssize_t size;
        Py_BEGIN_ALLOW_THREADS
        size = getdents64(directory, buffer, LISTED_BYTES);
        Py_END_ALLOW_THREADS
        if (size < 0) {
            PyErr_SetFromErrno(PyExc_OSError);
            goto failed;
        }
        if (size == 0)
            break;
        for (ssize_t offset = 0; offset < size;) {
            const struct dirent64 *entry = (const struct dirent64 *)(buffer + offset);
            const char *text = entry->d_name;
            offset += entry->d_reclen;
            if (text[0] == '.' && (!text[1] || (text[1] == '.' && !text[2])))
                continue;
            PyObject *name = PyBytes_FromString(text);
            if (name == NULL)
                goto failed;
            int failed = PyList_Append(is_directory(directory, entry) ? directories : others, name);
            Py_DECREF(name);
            if (failed)
                goto failed;
        }
    }
    PyMem_Free(buffer);
    return Py_BuildValue("NN", directories, others);
failed:
    PyMem_Free(buffer);
    Py_XDECREF(directories);
    Py_XDECREF(others);
    return NULL;
}

/* What is to be made; a row of a piece, see STATE_WORDS in `many_states.py`. */
struct row {
    const char *name;
    const char *content; /* of a symbolic link its text, without NUL at its end */
    uint64_t size;
    mode_t mode;
    uid_t uid;
    gid_t gid;
    struct timespec times[2];
};

static int make_file(int directory, const struct row *row, int flags)
{
    /* With its mode at once: what is read too early here is what its readers may read in a moment. */
    int descriptor = openat(directory, row->name, flags, row->mode & 0777);
    if (descriptor < 0)
        return -1;
    ssize_t written = 1;
    uint64_t done = 0;
    for (; done < row->size && written > 0; done += written > 0 ? written : 0)
        written = write(descriptor, row->content + done, row->size - done);
    int failed = done != row->size || ((row->uid || row->gid) && fchown(descriptor, row->uid, row->gid)) ||
                 (row->mode & 07000 && fchmod(descriptor, row->mode & 07777)) || futimens(descriptor, row->times);
    if (failed)
        unlinkat(directory, row->name, 0);
    close(descriptor);
    return failed ? -1 : 0;
}

static int make_symlink(int directory, const struct row *row)
{
    char text[PATH_MAX];
    if (row->size >= sizeof text || memchr(row->content, 0, row->size))
        return -1;
    memcpy(text, row->content, row->size);
    text[row->size] = 0;
    if (symlinkat(text, directory, row->name))
        return -1;
    int nofollow = AT_SYMLINK_NOFOLLOW;
    if (((row->uid || row->gid) && fchownat(directory, row->name, row->uid, row->gid, nofollow)) ||
        utimensat(directory, row->name, row->times, nofollow)) {
        unlinkat(directory, row->name, 0);
        return -1;
    }
    return 0;
}

static PyObject *make(PyObject *module, PyObject *arguments)
{
    int directory, flags;
    PyObject *sequence, *result = NULL;
    Py_buffer states, contents;
    struct names names;

    if (!PyArg_ParseTuple(arguments, "iOy*y*i", &directory, &sequence, &states, &contents, &flags))
        return NULL;
    if (take_names(sequence, &names))
        goto no_names;
    const uint64_t *column = states.buf;
    Py_ssize_t count = names.count, made = 0;
    uint64_t offset = 0;
    if (states.len != 5 * count * (Py_ssize_t)sizeof *column) {
        PyErr_SetString(PyExc_ValueError, "the states are not those of the names");
        goto done;
    }
    Py_BEGIN_ALLOW_THREADS
    for (; made < count; made++) {
        struct row row = {
            .name = names.text[made],
            .content = (const char *)contents.buf + offset,
            .size = column[2 * count + made],
            .mode = column[count + made] >> 32,
            .uid = column[made] >> 32,
            .gid = (gid_t)column[count + made],
            .times[1] = {(time_t)column[3 * count + made], (uint32_t)column[4 * count + made]},
        };
        row.times[0] = row.times[1];
        if (row.size > (uint64_t)contents.len - offset)
            break;
        if (S_ISREG(row.mode) ? make_file(directory, &row, flags)
                              : !S_ISLNK(row.mode) || make_symlink(directory, &row))
            break;
        offset += row.size;
    }
    Py_END_ALLOW_THREADS
    result = Py_BuildValue("nK", made, (unsigned long long)offset);
done:
    drop_names(&names);
no_names:
    PyBuffer_Release(&states);
    PyBuffer_Release(&contents);
    return result;
}

/* Whether it has exactly so many bytes, as far as it is read: more are not asked for. */
static int read_file(int directory, const char *name, int flags, char *content, uint64_t size)
{
    int descriptor = openat(directory, name, flags);
    if (descriptor < 0)
        return 0;
    uint64_t done = 0;
    ssize_t got = 1;
    for (; done < size && got > 0; done += got > 0 ? got : 0)
        got = read(descriptor, content + done, size - done);
    close(descriptor);
    return done == size;
}

static int read_symlink(int directory, const char *name, char *content, uint64_t size)
{
    char text[PATH_MAX];
    ssize_t length = readlinkat(directory, name, text, sizeof text);
    if (length < 0 || (uint64_t)length != size)
        return 0;
    memcpy(content, text, size);
    return 1;
}

static PyObject *contents(PyObject *module, PyObject *arguments)
{
    int directory, flags;
    PyObject *sequence, *result = NULL;
    Py_buffer kinds, sizes, into;
    struct names names;

    if (!PyArg_ParseTuple(arguments, "iOy*y*iw*", &directory, &sequence, &kinds, &sizes, &flags, &into))
        return NULL;
    if (take_names(sequence, &names))
        goto no_names;
    const uint64_t *kind = kinds.buf, *size = sizes.buf;
    Py_ssize_t room = names.count * (Py_ssize_t)sizeof *size;
    char *read = PyMem_Calloc(names.count + 1, 1);
    if (read == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    if (kinds.len != room || sizes.len != room) {
        PyErr_SetString(PyExc_ValueError, "kinds and sizes are not those of the names");
        goto done;
    }
    Py_BEGIN_ALLOW_THREADS
    uint64_t offset = 0;
    for (Py_ssize_t index = 0; index < names.count; offset += size[index++]) {
        char *content = (char *)into.buf + offset;
        if (size[index] > (uint64_t)into.len - offset)
            break;
        read[index] = S_ISLNK(kind[index]) ? read_symlink(directory, names.text[index], content, size[index])
                                           : read_file(directory, names.text[index], flags, content, size[index]);
    }
    Py_END_ALLOW_THREADS
    result = PyBytes_FromStringAndSize(read, names.count);
done:
    PyMem_Free(read);
    drop_names(&names);
no_names:
    PyBuffer_Release(&kinds);
    PyBuffer_Release(&sizes);
    PyBuffer_Release(&into);
    return result;
}

static PyMethodDef methods[] = {
    {"contents", contents, METH_VARARGS, "See _many.pyi."},
    {"make", make, METH_VARARGS, "See _many.pyi."},
    {"states", states, METH_VARARGS, "See _many.pyi."},
    {"names_in", names_in, METH_VARARGS, "See _many.pyi."},
    {0},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_many", NULL, 0, methods};

PyMODINIT_FUNC PyInit__many(void)
{
    return PyModule_Create(&definition);
}
